use super::super::objects::Version;
use super::*;

fn path(n: usize) -> Arc<PathBuf> {
    Arc::new(format!("networking.istio.io/v1/VirtualService/default/r{n}").into())
}

fn refusal(message: &str) -> Option<Refusal> {
    let fault = Fault { message: message.to_owned(), ..Fault::default() };
    Refusal::by_text(&[fault.clone(), fault], true)
}

#[test]
fn a_reason_is_short_and_counts_the_others() {
    let rejection = refusal(&"é".repeat(5000)).unwrap().rejection();
    assert_eq!((rejection.faults.len(), rejection.more, rejection.last_good), (1, 1, true));
    assert_eq!(rejection.faults[0].message.len(), MAX_TEXT);
    assert_eq!(Refusal::by_text(&[], true), None);
    assert_eq!(Refusal::by_compiler(&[]), None);
}

#[test]
fn only_so_many_reasons_are_kept_and_all_refusals() {
    let mut verdicts = Verdicts::default();
    for n in 0..MAX_REASONS + 10 {
        assert!(verdicts.set(&path(n), refusal("no")));
    }
    assert!(!verdicts.set(&path(0), refusal("no")), "nothing new");
    let bare = verdicts.refusal(&path(MAX_REASONS)).unwrap().rejection();
    assert!(bare.last_good && bare.faults.is_empty() && verdicts.is_by_text(&path(MAX_REASONS)));
    // What goes leaves its place to another.
    verdicts.forget(&path(0));
    assert!(verdicts.set(&path(1), None));
    assert!(verdicts.set(&path(MAX_REASONS), refusal("no")));
    assert_eq!(verdicts.refusal(&path(MAX_REASONS)).unwrap().rejection().faults.len(), 1);
    assert_eq!((verdicts.reasons, verdicts.refused.len()), (MAX_REASONS - 1, MAX_REASONS + 8));
}

#[test]
fn what_is_gone_or_has_no_status_is_not_told() {
    let mut held = Held::default();
    held.insert(path(1), Version::new("1", 1).unwrap());
    let pod = Arc::new(PathBuf::from("v1/Pod/default/p"));
    held.insert(Arc::clone(&pod), Version::new("1", 1).unwrap());
    let mut verdicts = Verdicts::default();
    verdicts.list(&pod);
    verdicts.list(&path(2));
    assert!(verdicts.has_news() && verdicts.news(&held).is_none());
    verdicts.list(&path(1));
    verdicts.said(&path(1));
    assert!(!verdicts.has_news());
    verdicts.list(&path(1));
    let news = verdicts.news(&held).unwrap();
    assert_eq!((news.changed.len(), news.changed[0].version.as_str()), (1, "1"));
    assert!(news.changed[0].rejected.is_none() && !verdicts.has_news());
}
