use super::*;
use crate::testing::Rng;

const MODES: [Normalization; 4] = [
    Normalization::None,
    Normalization::Base,
    Normalization::MergeSlashes,
    Normalization::DecodeAndMergeSlashes,
];

/// Every way to write `/admin` that BASE has to see through.
const ADMIN_IN_BASE: &[&str] = &[
    "/admin",
    "/%61dmin",
    "/a%64min",
    "/%61%64%6d%69%6e",
    "/%61%64%6D%69%6E",
    "/adm%69n",
    "/./admin",
    "/././admin",
    "/./././././admin",
    "/%2e/admin",
    "/%2E/admin",
    "/%2e/%2E/admin",
    "/../admin",
    "/../../admin",
    "/../../../../../../../../admin",
    "/%2e%2e/admin",
    "/%2E%2E/admin",
    "/%2e%2E/%2E%2e/admin",
    "/.%2e/admin",
    "/%2e./admin",
    "/x/../admin",
    "/x/%2e%2e/admin",
    "/x/%2E%2E/admin",
    "/x/.%2e/admin",
    "/x/%2e./admin",
    "/x/y/../../admin",
    "/x/y/../../../admin",
    "/x/./../admin",
    "/x/.././admin",
    "/x/../y/../admin",
    "/x/../%61dmin",
    "/%78/../admin",
    "/x%20/../admin",
    "/x;/../admin",
    "/x;y=1/../admin",
    "/%3b/../admin",
    "/;/../admin",
    "/x%2fy/../admin",
    "/x%5cy/../admin",
    "/%c0%ae/../admin",
    "/%/../admin",
    "/%zz/../admin",
    "/.x/../admin",
    "/..x/../admin",
    "/.../../admin",
    "/x../../admin",
    "/x./../admin",
    "//../admin",
    "/x//../../admin",
    "/x///../../../admin",
    "/%/%2e%2e/../admin",
    "/\\../admin",
    "/x\\..\\admin",
    "/x/..\\admin",
    "/x\\../admin",
    "/x\\%2e%2e\\admin",
    "/.\\admin",
    "/..\\admin",
    "/..\\..\\admin",
    "/%2e\\admin",
    "/x\\y\\..\\..\\admin",
    "/static/css/../../admin",
    "/static/%2e%2e/%61dmin",
    "/public/./../admin",
    "/api/v1/../../admin",
    "/api/v1/%2e%2e/%2e%2e/admin",
    "/health/../admin",
    "/favicon.ico/../admin",
    "/index.html/%2e%2e/admin",
    "/assets/.%2E/admin",
    "/assets/%2E./admin",
];

/// Beyond BASE: needs runs of slashes merged.
const ADMIN_IN_MERGE: &[&str] = &[
    "//admin",
    "///admin",
    "////////admin",
    "/.//admin",
    "//./admin",
    "/./\\admin",
    "/\\admin",
    "\\/admin",
    "/\\/admin",
    "/\\\\admin",
    "//%61dmin",
    "/..//admin",
    "/x/..//admin",
    "/x/../\\admin",
    "/x/%2e%2e//admin",
    "/%2e//admin",
    "//%2e/admin",
    "/..\\/admin",
];

/// Beyond that: needs encoded slashes decoded.
const ADMIN_IN_DECODE: &[&str] = &[
    "/%2fadmin",
    "/%2Fadmin",
    "/%5cadmin",
    "/%5Cadmin",
    "/%2f%2fadmin",
    "/%2f%5cadmin",
    "/.%2fadmin",
    "/%2e%2fadmin",
    "/%2e%5cadmin",
    "/..%2fadmin",
    "/..%5cadmin",
    "/%2e%2e%2fadmin",
    "/%2E%2E%2Fadmin",
    "/%2e%2e%5cadmin",
    "/x/..%2fadmin",
    "/x/..%5cadmin",
    "/x%2f../admin",
    "/x%5c../admin",
    "/x%2f..%2fadmin",
    "/x%2F..%2Fadmin",
    "/x%5c..%5cadmin",
    "/x%5C..%2fadmin",
    "/x%2f%2e%2e%2fadmin",
    "/x%2f%2e%2e/admin",
    "/x/%2e%2e%2fadmin",
    "/x%2f..%2f%61dmin",
    "/x/..%2f/admin",
    "/x/y%2f..%2f..%2fadmin",
    "/static%2f..%2fadmin",
    "/static/..%2fadmin",
    "/static%5c%2e%2e%5cadmin",
    "/public%2f.%2f..%2fadmin",
    "/api%2fv1%2f..%2f..%2fadmin",
];

/// Paths of their own: no mode may take them for something else. Servers that read `;`, a second
/// round of escapes or overlong UTF-8 in a special way need policies that know it.
const UNCHANGED: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b/c",
    "/admin/",
    "/Admin",
    "/ADMIN",
    "/admin;",
    "/admin;x",
    "/admin;x=y/z",
    "/;/admin",
    "/..;/admin",
    "/x/..;/admin",
    "/x/..;a=b/admin",
    "/.;/admin",
    "/admin.",
    "/admin..",
    "/.admin",
    "/..admin",
    "/.../admin",
    "/..../admin",
    "/admin/...",
    "/a.b/c.d",
    "/admin%20",
    "/admin%09",
    "/admin%0a",
    "/admin%0d%0aX:y",
    "/admin%3f",
    "/admin%3Fx=1",
    "/admin%23",
    "/admin%3b",
    "/admin%3B",
    "/admin%25",
    "/%2561dmin",
    "/%252e%252e/admin",
    "/%252e%252e%252fadmin",
    "/x%252f..%252fadmin",
    "/x%255c..%255cadmin",
    "/%25252e/admin",
    "/%c0%ae%c0%ae/admin",
    "/%c0%af/admin",
    "/%C0%AF/admin",
    "/%e0%80%af/admin",
    "/%e0%80%ae/admin",
    "/%f0%80%80%af/admin",
    "/%c1%9c/admin",
    "/%ef%bc%8f/admin",
    "/%ef%bc%8e%ef%bc%8e/admin",
    "/%u002e%u002e/admin",
    "/%u2215admin",
    "/%uff0eadmin",
    "/%",
    "/%%",
    "/%a",
    "/%zz",
    "/%2",
    "/100%",
    "/%2%65/admin",
    "/%2%65%2%65/admin",
    "/%%32e/admin",
    "/%2g/admin",
    "/%-1/admin",
    "/%0x2e/admin",
    "/a=b&c=d",
    "/a:b@c",
    "/a!$'()*+,b",
    "/a~b_c-d.e",
    "/a|b",
    "/[a]",
    "/%7e%7f",
];

#[test]
fn tricks_of_the_past() {
    let mut tricks = 0;
    let mut expect = |path: &str, mode, want: &str| {
        assert_eq!(normalize(path, mode).as_deref(), Ok(want), "{path:?} in {mode:?}");
        tricks += 1;
    };
    let [_, base, merge, decode] = MODES;
    for path in ADMIN_IN_BASE {
        expect(path, base, "/admin");
        expect(path, merge, "/admin");
        if !path.contains("%2f") && !path.contains("%5c") {
            expect(path, decode, "/admin");
        }
    }
    // With the slash decoded there is one more segment to leave.
    expect("/x%2fy/../admin", decode, "/x/admin");
    expect("/x%5cy/../admin", decode, "/x/admin");
    for path in ADMIN_IN_MERGE.iter().filter(|path| path.starts_with('/')) {
        assert_ne!(normalize(path, base).as_deref(), Ok("/admin"), "{path}");
        expect(path, merge, "/admin");
        expect(path, decode, "/admin");
    }
    for path in ADMIN_IN_DECODE {
        assert_ne!(normalize(path, merge).as_deref(), Ok("/admin"), "{path}");
        expect(path, decode, "/admin");
    }
    for path in UNCHANGED {
        for mode in [base, merge] {
            let path = if *path == "/%7e%7f" { "/~%7f" } else { path };
            expect(path, mode, path);
        }
    }
    assert!(tricks > 200, "only {tricks}");
    let paths = [ADMIN_IN_BASE, ADMIN_IN_MERGE, ADMIN_IN_DECODE, UNCHANGED].concat();
    assert!(paths.len() >= 185, "only {}", paths.len());
}

#[test]
fn the_rest_of_the_rules() {
    for (path, base) in [
        ("/.", "/"),
        ("/..", "/"),
        ("/../", "/"),
        ("/%2e%2e", "/"),
        ("/x/..", "/"),
        ("/x/../", "/"),
        ("/x/.", "/x/"),
        ("/x/./", "/x/"),
        ("/x/y/..", "/x/"),
        ("/x//../y", "/x/y"),
        ("/x//..//y", "/x//y"),
        ("/admin//", "/admin//"),
        ("/admin;/../x", "/x"),
        ("/admin ", "/admin%20"),
        ("/admin\t", "/admin%09"),
        ("/<x>", "/%3Cx%3E"),
        ("/{x}", "/%7Bx%7D"),
        ("/\"`", "/%22%60"),
        ("/\u{7f}", "/%7F"),
        ("/\u{fe52}", "/%EF%B9%92"),
        ("/\u{ff0e}\u{ff0e}/admin", "/%EF%BC%8E%EF%BC%8E/admin"),
        ("/\u{2215}admin", "/%E2%88%95admin"),
        ("/%%32%65/admin", "/%%32e/admin"),
        ("/%7e", "/~"),
        ("/%5c", "/%5c"),
    ] {
        assert_eq!(normalize(path, Normalization::Base).as_deref(), Ok(base), "{path:?}");
    }
    for (path, why) in [
        ("", PathError::NotAbsolute),
        ("admin", PathError::NotAbsolute),
        ("*", PathError::NotAbsolute),
        ("\\admin", PathError::NotAbsolute),
        ("%2fadmin", PathError::NotAbsolute),
        ("../admin", PathError::NotAbsolute),
        ("http://x/admin", PathError::NotAbsolute),
        ("/%00", PathError::Nul),
        ("/admin%00", PathError::Nul),
        ("/admin%00.html", PathError::Nul),
        ("/%00/../admin", PathError::Nul),
        ("/admin#x", PathError::Fragment),
        ("/#/../admin", PathError::Fragment),
    ] {
        for mode in &MODES[1..] {
            assert_eq!(normalize(path, *mode), Err(why), "{path:?} in {mode:?}");
        }
    }
    let long = format!("/{}", "a".repeat(MAX_PATH));
    assert_eq!(normalize(&long, Normalization::Base), Err(PathError::TooLong));
    assert_eq!(normalize("/%2e/x", Normalization::None).as_deref(), Ok("/%2e/x"));
}

#[test]
fn ordinary_paths_are_not_copied() {
    for path in ["/", "/a/b", "/a.b/c", "/productpage", "/a%20b"] {
        for mode in MODES {
            assert!(matches!(normalize(path, mode), Ok(Cow::Borrowed(_))), "{path}");
        }
    }
}

/// What a server may do to a path that it was given: decode once, letter by letter.
fn decoded_once(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = String::new();
    let mut at = 0;
    while at < bytes.len() {
        match escape_at(bytes, at).filter(|b| is_unreserved(*b)) {
            Some(byte) => {
                out.push(char::from(byte));
                at += 3;
            }
            None => {
                out.push(char::from(bytes[at]));
                at += 1;
            }
        }
    }
    out
}

#[test]
fn properties_of_every_result() {
    const PIECES: &[&str] = &[
        "/", "/", "\\", "%2f", "%5C", ".", "..", "%2e", "%2E", "%", "%25", "%32", "65", "2e", "a",
        "%61", ";", "//", "%c0%ae", " ", "ä", "%%", "%2",
    ];
    let mut rng = Rng::new("properties_of_every_result");
    for _ in 0..50_000 {
        let pieces = 1 + rng.below(12);
        let path: String = (0..pieces).map(|_| rng.choose(PIECES)).collect();
        let path = format!("/{path}");
        for mode in &MODES[1..] {
            let once = normalize(&path, *mode).unwrap().into_owned();
            assert_eq!(normalize(&once, *mode).as_deref(), Ok(&*once), "{path:?} {mode:?} again");
            assert!(once.starts_with('/') && once.is_ascii(), "{path:?} {mode:?} gave {once:?}");
            assert!(!once.contains('\\'), "{path:?} {mode:?} gave {once:?}");
            for seen in [once.clone(), decoded_once(&once)] {
                assert!(
                    !seen.split('/').any(|s| s == "." || s == ".."),
                    "{path:?} {mode:?} gave {once:?}, which a server may read as {seen:?}"
                );
            }
            if merges(*mode) {
                assert!(!once.contains("//"), "{path:?} {mode:?} gave {once:?}");
            }
        }
    }
}
