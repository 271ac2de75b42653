//! The API server's word about tokens, for a few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Caller, Denied};

/// Most tokens that are remembered; nodes of a large cluster and workloads that fetch their own
/// certificates.
const MAX_ENTRIES: usize = 8192;
/// How long a refusal is remembered: a token that is not known yet may be a moment later.
const REFUSAL: Duration = Duration::from_secs(2);

type Word = Result<Arc<Caller>, Denied>;

/// What was said, by the token's hash.
pub(super) struct Cache {
    ttl: Duration,
    entries: Mutex<HashMap<[u8; 32], (Word, Instant)>>,
}

impl Cache {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, entries: Mutex::default() }
    }

    pub(super) fn get(&self, key: &[u8; 32]) -> Option<Word> {
        let entries = self.entries.lock();
        let (word, until) = entries.get(key)?;
        (*until > Instant::now()).then(|| word.clone())
    }

    pub(super) fn put(&self, key: [u8; 32], word: Word) {
        let ttl = if word.is_ok() { self.ttl } else { self.ttl.min(REFUSAL) };
        let now = Instant::now();
        let mut entries = self.entries.lock();
        if entries.len() >= MAX_ENTRIES && !entries.contains_key(&key) {
            entries.retain(|_, (_, until)| *until > now);
            if entries.len() >= MAX_ENTRIES {
                // Full of what still counts: the newcomer is asked about again next time.
                return;
            }
        }
        entries.insert(key, (word, now + ttl));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn words_expire_and_are_bounded() {
        let cache = Cache::new(Duration::from_secs(10));
        let good = || Ok(Arc::new(Caller::default()));
        let bad = || Err(Denied::Refused("no".into()));
        cache.put([1; 32], good());
        cache.put([2; 32], bad());
        assert!(cache.get(&[1; 32]).is_some_and(|word| word.is_ok()));
        assert!(cache.get(&[2; 32]).is_some_and(|word| word.is_err()));
        assert!(cache.get(&[3; 32]).is_none());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(cache.get(&[1; 32]).is_some() && cache.get(&[2; 32]).is_none());
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(cache.get(&[1; 32]).is_none());
        for n in 0..2 * MAX_ENTRIES {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            cache.put(key, good());
        }
        assert!(cache.entries.lock().len() <= MAX_ENTRIES);
        tokio::time::advance(Duration::from_secs(11)).await;
        cache.put([9; 32], good());
        assert!(cache.get(&[9; 32]).is_some());
    }
}
