//! What is left of pods that the configuration has no more: their sandboxes, until the plugin takes
//! them back, and their processes.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{LATEST, MAX_TOLD, SOON};
use crate::enrolment::Place;

/// How long a sandbox counts in which nothing runs, and which the plugin has not taken back: its
/// first process may be about to start, or the plugin's word may have been lost.
const QUIET: Duration = Duration::from_secs(60);

/// Knows which namespaces are still somebody's.
#[derive(Debug)]
pub(super) struct Remaining {
    /// Sandboxes that were told of, oldest first.
    left: Vec<Left>,
    /// The namespaces that are asked about.
    looks: HashMap<Place, Look>,
    next: Option<Instant>,
    pause: Duration,
}

#[derive(Debug)]
struct Left {
    container_id: String,
    place: Place,
    /// When it was asked about last.
    asked: Option<Instant>,
}

/// What was seen of a namespace at the last look.
#[derive(Debug)]
struct Look {
    busy: bool,
    /// When anything ran there last, or else the first look.
    busy_last: Instant,
}

impl Default for Remaining {
    fn default() -> Self {
        Self { left: Vec::new(), looks: HashMap::new(), next: None, pause: SOON }
    }
}

impl Remaining {
    /// The configuration has the pod of this sandbox no more, or with another.
    pub(super) fn add(&mut self, container_id: String, place: Place) {
        if self.left.len() >= MAX_TOLD {
            self.left.remove(0);
        }
        self.left.push(Left { container_id, place, asked: None });
    }

    pub(super) fn keep_only(&mut self, stays: impl Fn(&str) -> bool) {
        self.left.retain(|left| stays(&left.container_id));
    }

    /// Those of `places` that are somebody's. `told`: the sandboxes of pods that the configuration
    /// has, or will have. `busy` looks at all processes.
    pub(super) fn of(
        &mut self,
        places: &HashSet<Place>,
        told: &HashSet<Place>,
        now: Instant,
        busy: impl FnOnce() -> HashSet<Place>,
    ) -> HashSet<Place> {
        // Those that nobody asks about were not captured.
        self.left.retain_mut(|left| {
            let asked = left.asked.get_or_insert(now);
            if places.contains(&left.place) {
                *asked = now;
            }
            now.saturating_duration_since(*asked) < QUIET
        });
        self.looks.retain(|place, _| places.contains(place));
        if places.is_empty() {
            self.next = None;
            return HashSet::new();
        }
        if places.iter().any(|place| !self.looks.contains_key(place)) {
            self.pause = SOON;
            self.next = None;
        }
        if self.next.is_none_or(|next| now >= next) {
            let busy = busy();
            for place in places {
                let look = self.looks.entry(*place).or_insert(Look { busy: false, busy_last: now });
                look.busy = busy.contains(place);
                if look.busy {
                    look.busy_last = now;
                }
            }
            self.next = Some(now + self.pause);
            self.pause = (self.pause * 2).min(LATEST);
        }
        let is_left =
            |place: &Place| told.contains(place) || self.left.iter().any(|l| l.place == *place);
        let remains = |(place, look): (&Place, &Look)| {
            let quiet = now.saturating_duration_since(look.busy_last);
            (look.busy || quiet < QUIET && is_left(place)).then_some(*place)
        };
        self.looks.iter().filter_map(remains).collect()
    }
}
