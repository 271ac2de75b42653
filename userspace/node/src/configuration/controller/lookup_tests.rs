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
    lookups.connected();
    let many: Vec<_> = (0..10)
        .map(|_| {
            let lookups = Arc::clone(&lookups);
            tokio::spawn(async move { lookups.look_up(ip("10.0.0.1")).await })
        })
        .collect();
    assert_eq!(asked.recv().await, Some(ip("10.0.0.1")));
    lookups.sent(1, vec![ip("10.0.0.1")]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    lookups.found(1, false, &[]);
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

#[tokio::test(start_paused = true)]
async fn without_an_answer_private_addresses_are_refused_and_public_ones_are_not() {
    let (refusing, _asked) = lookups(Unanswered::Refuse);
    tokio::time::advance(RETURN).await;
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
async fn the_next_stream_answers_what_the_last_one_did_not() {
    let (lookups, mut asked) = lookups(Unanswered::Refuse);
    lookups.connected();
    let ask = |address: &'static str| {
        let lookups = Arc::clone(&lookups);
        tokio::spawn(async move { lookups.look_up(ip(address)).await })
    };
    let private = ask("10.0.0.1");
    assert_eq!(asked.recv().await, Some(ip("10.0.0.1")));
    lookups.sent(1, vec![ip("10.0.0.1")]);
    let public = ask("1.1.1.1");
    assert_eq!(asked.recv().await, Some(ip("1.1.1.1")));
    lookups.unanswered();
    // Nobody refuses a public address: it does not wait.
    assert_eq!(public.await.unwrap(), Answer::Unknown);
    let later = ask("10.0.0.2");
    assert_eq!(asked.recv().await, Some(ip("10.0.0.1")));
    assert_eq!(asked.recv().await, Some(ip("10.0.0.2")));
    lookups.connected();
    lookups.sent(1, vec![ip("10.0.0.1"), ip("10.0.0.2")]);
    lookups.found(1, true, &[]);
    assert_eq!(private.await.unwrap(), Answer::LookAgain);
    assert_eq!(later.await.unwrap(), Answer::LookAgain);
    // No stream comes: not for ever.
    lookups.unanswered();
    let begin = tokio::time::Instant::now();
    assert!(matches!(ask("10.0.0.3").await.unwrap(), Answer::Refused(_)));
    assert!(begin.elapsed() >= RETURN && begin.elapsed() <= RETURN + PATIENCE);
    assert!(matches!(ask("10.0.0.4").await.unwrap(), Answer::Refused(_)));
    assert!(begin.elapsed() <= RETURN + PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn a_silent_controller_is_waited_for_no_longer_than_a_second() {
    let (lookups, _asked) = lookups(Unanswered::Refuse);
    lookups.connected();
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

#[tokio::test]
async fn addresses_of_pods_that_nobody_is_known_to_have_are_refused() {
    for (policy, refused) in [(Unanswered::Refuse, true), (Unanswered::Pass, false)] {
        let (lookups, mut asked) = lookups(policy);
        lookups.connected();
        let ask = |text: &'static str| {
            let lookups = Arc::clone(&lookups);
            tokio::spawn(async move { lookups.look_up(ip(text)).await })
        };
        let (starting, outside) = (ask("10.0.0.7"), ask("192.0.2.1"));
        let both = vec![asked.recv().await.unwrap(), asked.recv().await.unwrap()];
        lookups.sent(1, both);
        lookups.found(1, false, &["10.0.0.7".to_owned(), "nonsense".to_owned()]);
        let answer = starting.await.unwrap();
        assert_eq!(answer == Answer::Refused(UNCLAIMED), refused, "{answer:?}");
        assert_eq!(outside.await.unwrap(), Answer::LookAgain);
        let again = lookups.look_up(ip("10.0.0.7")).await;
        assert_eq!(again == Answer::Refused(UNCLAIMED), refused, "{again:?}");
        assert_eq!(again == Answer::Unknown, !refused, "{again:?}");
        assert_eq!(lookups.look_up(ip("192.0.2.1")).await, Answer::Unknown);
        if refused {
            // It may be known in a moment.
            tokio::time::sleep(UNCLAIMED_FOR).await;
            let later = ask("10.0.0.7");
            assert_eq!(asked.recv().await, Some(ip("10.0.0.7")));
            lookups.sent(2, vec![ip("10.0.0.7")]);
            lookups.found(2, true, &[]);
            assert_eq!(later.await.unwrap(), Answer::LookAgain);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_no_longer_takes_nothing_from_those_who_came_later() {
    for policy in [Unanswered::Refuse, Unanswered::Pass] {
        let (lookups, mut asked) = lookups(policy);
        lookups.connected();
        let ask = || {
            let lookups = Arc::clone(&lookups);
            tokio::spawn(async move { lookups.look_up(ip("10.0.0.1")).await })
        };
        let first = ask();
        assert_eq!(asked.recv().await, Some(ip("10.0.0.1")));
        lookups.sent(1, vec![ip("10.0.0.1")]);
        tokio::time::sleep(PATIENCE * 9 / 10).await;
        let second = ask();
        assert_ne!(first.await.unwrap(), Answer::LookAgain, "its second is over");
        // The question may have been lost.
        assert_eq!(asked.try_recv().ok(), Some(ip("10.0.0.1")));
        let third = ask();
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!second.is_finished(), "its second is not over");
        lookups.found(1, true, &[]);
        assert_eq!(second.await.unwrap(), Answer::LookAgain);
        assert_eq!(third.await.unwrap(), Answer::LookAgain);
        assert!(asked.try_recv().is_err(), "asked a third time");
        assert!(lookups.state.lock().waiting.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_have_ended_take_no_room() {
    let (lookups, mut asked) = lookups(Unanswered::Refuse);
    lookups.connected();
    let address = |n: usize| IpAddr::from([10, 1, (n >> 8) as u8, n as u8]);
    for n in 0..LOOKUPS_WAITING {
        let ended = tokio::time::timeout(Duration::ZERO, lookups.look_up(address(n))).await;
        assert!(ended.is_err(), "{ended:?}");
        assert_eq!(asked.try_recv().ok(), Some(address(n)));
    }
    let later = Arc::clone(&lookups);
    let later = tokio::spawn(async move { later.look_up(address(LOOKUPS_WAITING)).await });
    let question = tokio::time::timeout(PATIENCE, asked.recv()).await;
    assert_eq!(question, Ok(Some(address(LOOKUPS_WAITING))));
    lookups.sent(1, vec![address(LOOKUPS_WAITING)]);
    lookups.found(1, true, &[]);
    assert_eq!(later.await.unwrap(), Answer::LookAgain);
}
