use std::collections::HashSet;

use super::*;
use crate::testing::{Rng, chi_square};

struct Host(Load);

impl Candidate for Host {
    fn load(&self) -> &Load {
        &self.0
    }
}

fn hosts(n: usize) -> Vec<Host> {
    (0..n).map(|_| Host(Load::default())).collect()
}

const ALL: [LoadBalancer; 3] =
    [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::LeastRequest { choices: 2 }];

#[test]
fn round_robin_is_strictly_cyclic() {
    let (state, hosts) = (BalancerState::starting_at(5), hosts(3));
    let picks: Vec<_> =
        (0..9).map(|_| pick(&LoadBalancer::RoundRobin, &state, &hosts, &[], 0).unwrap()).collect();
    assert_eq!(picks, [2, 0, 1, 2, 0, 1, 2, 0, 1]);
}

#[test]
fn round_robin_shared_by_threads_is_fair() {
    let (state, hosts) = (BalancerState::default(), hosts(4));
    let counts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut counts = [0; 4];
                    for _ in 0..1000 {
                        counts[pick(&LoadBalancer::RoundRobin, &state, &hosts, &[], 0).unwrap()] +=
                            1;
                    }
                    counts
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for host in 0..4 {
        assert_eq!(counts.iter().map(|c| c[host]).sum::<usize>(), 1000);
    }
}

#[test]
fn random_is_uniform_with_and_without_exclusion() {
    let (state, hosts) = (BalancerState::default(), hosts(7));
    let mut rng = Rng::new("random_is_uniform_with_and_without_exclusion");
    for excluded in [&[][..], &[0], &[6], &[2, 3], &[3, 2, 3], &[0, 1, 5, 6], &[9]] {
        let open: Vec<usize> = (0..7).filter(|i| !excluded.contains(i)).collect();
        let mut counts = [0usize; 7];
        for _ in 0..20_000 {
            counts[pick(&LoadBalancer::Random, &state, &hosts, excluded, rng.next()).unwrap()] += 1;
        }
        let observed: Vec<_> = open.iter().map(|i| counts[*i]).collect();
        assert_eq!(observed.iter().sum::<usize>(), 20_000, "an excluded one was picked");
        let expected = vec![20_000.0 / open.len() as f64; open.len()];
        // The 99.99 % quantile for 6 degrees of freedom.
        assert!(chi_square(&observed, &expected) < 27.9, "{excluded:?}: {counts:?}");
    }
}

#[test]
fn least_request_prefers_the_idle() {
    let (state, hosts) = (BalancerState::default(), hosts(10));
    let mut rng = Rng::new("least_request_prefers_the_idle");
    let slow: Vec<_> = (0..100).map(|_| LoadGuard::enter(&hosts[3])).collect();
    let balancer = LoadBalancer::default();
    let mut counts = [0usize; 10];
    let mut guards = std::collections::VecDeque::new();
    for _ in 0..10_000 {
        let i = pick(&balancer, &state, &hosts, &[], rng.next()).unwrap();
        counts[i] += 1;
        guards.push_back(LoadGuard::enter(&hosts[i]));
        if guards.len() > 20 {
            guards.pop_front();
        }
    }
    assert_eq!(counts[3], 0, "two different ones are compared: the busy one always loses");
    let fair = 10_000 / 9;
    assert!(counts.iter().enumerate().all(|(i, c)| i == 3 || c.abs_diff(fair) < 150), "{counts:?}");
    drop((slow, guards));
    assert!(hosts.iter().all(|host| host.load().active() == 0), "guards give back");
}

#[test]
fn least_request_of_all_finds_the_minimum() {
    let (state, hosts) = (BalancerState::default(), hosts(6));
    let mut rng = Rng::new("least_request_of_all_finds_the_minimum");
    let _busy: Vec<_> = (0..6).filter(|i| *i != 4).map(|i| LoadGuard::enter(&hosts[i])).collect();
    for choices in [6, 100, u32::MAX] {
        for _ in 0..200 {
            let balancer = LoadBalancer::LeastRequest { choices };
            assert_eq!(pick(&balancer, &state, &hosts, &[], rng.next()), Some(4));
        }
    }
}

#[test]
fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    let (state, hosts) = (BalancerState::default(), hosts(4));
    let mut rng = Rng::new("a_retry_goes_elsewhere_while_there_is_an_elsewhere");
    for balancer in ALL {
        for _ in 0..1_000 {
            let mut tried = Vec::new();
            for _ in 0..4 {
                tried.push(pick(&balancer, &state, &hosts, &tried, rng.next()).unwrap());
            }
            assert_eq!(tried.iter().collect::<HashSet<_>>().len(), 4, "{balancer:?}: {tried:?}");
            assert!(pick(&balancer, &state, &hosts, &tried, rng.next()).is_some());
        }
    }
}

#[test]
fn nothing_to_pick() {
    let state = BalancerState::default();
    for balancer in ALL {
        assert_eq!(pick(&balancer, &state, &hosts(0), &[], 7), None);
        assert_eq!(pick(&balancer, &state, &hosts(1), &[0], u64::MAX), Some(0));
    }
    assert_eq!(pick(&LoadBalancer::Passthrough, &state, &hosts(3), &[], 7), None);
}
