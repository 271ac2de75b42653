//! The controller: watches the API server, streams to node daemons what they need, signs their
//! certificates, checks what is applied, and says in status what became of it.
