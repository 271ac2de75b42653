//! Pure decisions: routing, authorization, filters, balancing.
