use std::sync::Arc;

use super::*;

fn lookups(policy: Unanswered) -> (Arc<Lookups>, mpsc::Receiver<IpAddr>) {
    let (ask, asked) = mpsc::channel(LOOKUPS_WAITING);
    (Arc::new(Lookups::new(ask, Status::new("c".into()), policy)), asked)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn one_question_serves_all_who_wait_and_its_answer_is_remembered() {
    let (lookups, mut asked) = lookups(Unanswered::Refuse);
    lookups.connected(true);
    let many: Vec<_> = (0..10)
        .map(|_| {
            let lookups = Arc::clone(&lookups);
            tokio::spawn(async move { lookups.look_up(ip("10.0.0.1")).await })
        })
        .collect();
    assert_eq!(asked.recv().await, Some(ip("10.0.0.1")));
    lookups.sent(1, vec![ip("10.0.0.1")]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    lookups.found(1, false);
    for one in many {
        assert_eq!(one.await.unwrap(), Answer::LookAgain);
    }
    assert!(asked.try_recv().is_err(), "asked twice");
    assert_eq!(lookups.look_up(ip("10.0.0.1")).await, Answer::Unknown, "asked again at once");
    tokio::time::sleep(UNKNOWN_FOR).await;
    let again = Arc::clone(&lookups);
    let again = tokio::spawn(async move { again.look_up(ip("::ffff:10.0.0.1")).await });
    assert_eq!(asked.recv().await, Some(ip("10.0.0.1")));
    lookups.unanswered();
    // It was unknown before: that counts while nobody can be asked.
    assert_eq!(again.await.unwrap(), Answer::Unknown);
}

#[tokio::test]
async fn without_an_answer_private_addresses_are_refused_and_public_ones_are_not() {
    let (refusing, _asked) = lookups(Unanswered::Refuse);
    for (address, refused) in [
        ("10.1.2.3", true),
        ("172.20.0.1", true),
        ("192.168.1.1", true),
        ("100.64.0.1", true),
        ("fd00::1", true),
        ("100.128.0.1", false),
        ("1.1.1.1", false),
        ("2001:db8::1", false),
    ] {
        let answer = refusing.look_up(ip(address)).await;
        assert_eq!(matches!(answer, Answer::Refused(_)), refused, "{address}");
    }
    let (passing, _asked) = lookups(Unanswered::Pass);
    assert_eq!(passing.look_up(ip("10.1.2.3")).await, Answer::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_silent_controller_is_waited_for_no_longer_than_a_second() {
    let (lookups, _asked) = lookups(Unanswered::Refuse);
    lookups.connected(true);
    let begin = tokio::time::Instant::now();
    let answer = lookups.look_up(ip("10.0.0.1")).await;
    assert!(matches!(answer, Answer::Refused(_)));
    assert_eq!(begin.elapsed(), PATIENCE);
    assert!(lookups.state.lock().waiting.is_empty());
    // More questions than are taken at a time.
    let many: Vec<_> = (0..LOOKUPS_WAITING + 10)
        .map(|n| {
            let lookups = Arc::clone(&lookups);
            let address = IpAddr::from([10, 1, (n >> 8) as u8, n as u8]);
            tokio::spawn(async move { lookups.look_up(address).await })
        })
        .collect();
    for one in many {
        assert!(matches!(one.await.unwrap(), Answer::Refused(_)));
    }
}
