//! Input that nobody means well with: bounded time and memory, and never a panic.

use std::fmt::Write;
use std::time::{Duration, Instant};

use super::*;

/// Generous: a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn refused(text: &str, why: &str) {
    let begin = Instant::now();
    let parsed = yaml(text);
    assert!(begin.elapsed() < SOON, "{why}: {:?}", begin.elapsed());
    assert!(parsed.objects.is_empty(), "{why}");
    let found: Vec<&str> = parsed.problems.iter().map(|p| p.message.as_str()).collect();
    assert!(found.iter().any(|message| message.contains(why)), "{why}: {found:?}");
}

#[test]
fn billion_laughs() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..20 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(text, "a{level}: &a{level} [{below}]").unwrap();
    }
    refused(&text, "aliases expand to too much");
    // Few nodes, much text.
    let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(", "));
    refused(&text, "aliases expand to too much");
    // By way of merge keys.
    let mut text = String::from("a0: &a0 {k0: [1, 2, 3, 4, 5, 6, 7, 8]}\n");
    for level in 1..60 {
        writeln!(text, "a{level}: &a{level} {{<<: *a{0}, k{level}: *a{0}}}", level - 1).unwrap();
    }
    refused(&text, "aliases expand to too much");
    refused("a: &a [*a]\n", "alias");
}

#[test]
fn depth() {
    let nested = |open: &str, close: &str, count: usize| {
        format!("{}{}", open.repeat(count), close.repeat(count))
    };
    refused(&nested("[", "]", 150), "nested too deep");
    let block: String = (0..150).fold(String::new(), |mut text, level| {
        let _ = writeln!(text, "{}a:", " ".repeat(level));
        text
    });
    refused(&block, "nested too deep");
    for count in [1_000, 100_000] {
        let parsed = yaml(&nested("[", "]", count));
        assert!(parsed.unreadable, "{count}");
        let parsed = yaml(&nested("{a: ", "}", count));
        assert!(parsed.unreadable, "{count}");
        let parsed = yaml(&"- ".repeat(count));
        assert!(parsed.unreadable, "{count}");
    }
}

#[test]
fn wide_documents_take_time_in_proportion() {
    let mut text = String::from("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n");
    for number in 0..50_000 {
        let _ = writeln!(text, "  k{number}: v");
    }
    let begin = Instant::now();
    assert_eq!(yaml(&text).objects.len(), 1);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let begin = Instant::now();
    let parsed = yaml(&format!("[{}]", "a,".repeat(200_000)));
    assert!(parsed.lost);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[test]
fn problems_are_bounded() {
    let routes = "  - {route: [{destination: {host: '*'}}], bogus: 1}\n".repeat(5_000);
    let parsed = yaml(&object(
        "networking.istio.io/v1",
        "VirtualService",
        &format!("  hosts: [a]\n  http:\n{routes}"),
    ));
    assert!(parsed.problems.len() <= 101, "{}", parsed.problems.len());
    assert!(parsed.problems.last().unwrap().message.contains("more problems"));
    let parsed = yaml(&"--- a\n".repeat(5_000));
    assert_eq!(parsed.problems.len(), 1_001);
    assert_eq!(parsed.problems[1_000].message, "and 4000 more problems");
}

/// How many inputs are made; `FAIRLEAD_FUZZ_ROUNDS` asks for more.
fn rounds(default: usize) -> usize {
    std::env::var("FAIRLEAD_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A generator of our own (xorshift): a failure names its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

const CORPUS: &[&str] = &[
    "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, labels: &l {x: 'y'}}\n  spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}\n  status: {podIP: 10.0.0.1}\n",
    "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [reviews]\n  http:\n  - match:\n    - headers: {end-user: {exact: jason}}\n      uri: {regex: '^/a.*'}\n    fault: {delay: {fixedDelay: 5s, percentage: {value: 10}}}\n    route: [{destination: {host: reviews, subset: v2, port: {number: 80}}, weight: 100}]\n    retries: {attempts: 3, perTryTimeout: 2s, retryOn: 5xx}\n",
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  action: DENY\n  selector: {matchLabels: {app: a}}\n  rules:\n  - from: [{source: {principals: ['*'], ipBlocks: [10.0.0.0/8]}}]\n    to: [{operation: {paths: ['/a/{*}'], ports: ['80']}}]\n    when: [{key: source.ip, values: [10.0.0.1]}]\n",
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\ndata:\n  mesh: |-\n    trustDomain: a.b\n    connectTimeout: 10s\n    accessLogFormat: \"%REQ(X)%\"\n",
    "a: &x {b: !!str 1, <<: *y}\n? complex\n: >-\n  folded\n...\n%YAML 1.2\n---\n\"\\u00e9\\x41\": '''' # end\n",
];

const TOKENS: &[&str] = &[
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "!x ",
    "[",
    "]",
    "{",
    "}",
    ",",
    ": ",
    "- ",
    "? ",
    "|",
    ">-",
    "\t",
    "\n",
    "\n  ",
    "\"",
    "'",
    "#",
    "%YAML 1.1\n",
    "null",
    "~",
    "-1",
    "1e999",
    "0x",
    ".inf",
    "\u{feff}",
    "\u{0}",
    "\u{85}",
    "é",
    "𝄞",
    "99999999999999999999",
    "-9223372036854775809",
    "5s",
    "\\u",
];

#[test]
fn mutations_of_good_documents_never_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds(6_000) {
        let mut text = CORPUS[random.below(CORPUS.len())].to_owned();
        for _ in 0..=random.below(6) {
            let at = |random: &mut Random, text: &str| {
                let mut at = random.below(text.len() + 1);
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                at
            };
            let (a, b) = (at(&mut random, &text), at(&mut random, &text));
            match random.below(4) {
                0 => text.insert_str(a, TOKENS[random.below(TOKENS.len())]),
                1 => text.replace_range(a.min(b)..a.max(b), ""),
                2 => {
                    let piece = text[a.min(b)..a.max(b)].to_owned();
                    text.insert_str(at(&mut random, &text), &piece);
                }
                _ => text.truncate(a),
            }
            if text.len() > 20_000 {
                break;
            }
        }
        let begin = Instant::now();
        let parsed = yaml(&text);
        assert!(begin.elapsed() < SOON, "{text:?}");
        // What was refused is explained, and what is good has a name.
        assert!(parsed.rejected.is_empty() || !parsed.problems.is_empty(), "{text:?}");
        assert!(parsed.objects.iter().all(|object| !object.metadata().name.is_empty()), "{text:?}");
        for problem in &parsed.problems {
            let _ = problem.to_string();
        }
        let _ = parse(&Arc::new(PathBuf::from("x.json")), &text, Format::Json);
    }
}

#[test]
fn noise_never_panics() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    for _ in 0..rounds(4_000) {
        let length = random.below(200);
        let text: String = (0..length)
            .map(|_| match random.below(3) {
                0 => TOKENS[random.below(TOKENS.len())].chars().next().unwrap_or('a'),
                1 => char::from(u8::try_from(random.below(128)).unwrap()),
                _ => char::from_u32(u32::try_from(random.below(0x1_1000)).unwrap()).unwrap_or('?'),
            })
            .collect();
        let begin = Instant::now();
        let _ = yaml(&text);
        assert!(begin.elapsed() < SOON, "{text:?}");
    }
}
