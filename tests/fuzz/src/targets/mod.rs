//! All targets.

use crate::Target;

pub mod access_log;
pub mod admin_request;
pub mod carried_request;
pub mod certificate;
pub mod client_hello;
pub mod cni;
pub mod configuration;
pub mod detect;
pub mod http_head;
pub mod http_request;
pub mod map_address;
pub mod node_settings;
pub mod path;
pub mod pem;
pub mod principal;
pub mod procfs;
pub mod query_match;
pub mod rewrite;
pub mod signing_request;
pub mod spiffe_id;
pub mod state_file;
pub mod stream_meta;
pub mod stream_request;
pub mod string_match;
pub mod values;
pub mod words;

macro_rules! targets {
    ($($name:ident: $run:path, $mutations:literal, [$($word:literal),* $(,)?];)*) => {
        /// All targets, in order of their names.
        pub const ALL: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $run,
            mutations: $mutations,
            words: &[$($word),*],
        }),*];

        #[cfg(test)]
        mod tests {
            use super::ALL;

            $(
                #[test]
                fn $name() {
                    let own = |target: &&crate::Target| target.name == stringify!($name);
                    crate::suite::run(ALL.iter().find(own).unwrap());
                }
            )*

            #[test]
            fn every_folder_of_seeds_has_its_target() {
                let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
                let mut folders: Vec<String> = std::fs::read_dir(corpus)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect();
                folders.sort();
                let names: Vec<&str> = ALL.iter().map(|target| target.name).collect();
                assert_eq!(folders, names);
            }
        }
    };
}

targets! {
    access_log: access_log::run, 400, [
        b"%REQ(", b"%RESP(", b")%", b"%START_TIME(", b"%", b"%%", b"%3f", b"?:PATH", b":10",
        b"%PROTOCOL%", b"%REASON%", b"{\"", b"\":\"", b"\"}", b"\n", b"\\u0000", b"\r", b"\xff",
        b"%GRPC_STATUS(NUMBER)%", b"18446744073709551616",
    ];
    admin_request: admin_request::run, 1000, [
        b"localhost", b"127.0.0.1", b"[::1]", b":15000", b"%", b"%6c", b"&", b"=", b"+", b"[", b"]",
        b"level=", b"::ffff:127.0.0.1", b"evil.example",
    ];
    carried_request: carried_request::run, 800, [
        b"GET ", b"CONNECT ", b"http://a:80/", b" 1.1\n", b" 2\n", b"fairlead-http: 1.1\n",
        b"fairlead-no-host: 1\n", b"fairlead-target: a:443\n", b"host: b\n", b"fairlead-connect",
        b"websocket", b"\n", b"fairlead-dst: 10.0.0.1:80\n", b"*",
    ];
    certificate: certificate::run, 1500, [
        b"\x30", b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x13", b"\x86", b"\x82", b"\x30\x80",
        b"\x84\xff\xff\xff\xff", b"spiffe://", b"/ns/", b"/sa/", b"\x01\x01\xff", b"\x30\x03\x01\x01\xff",
        b"\0",
    ];
    client_hello: client_hello::run, 1000, [
        b"\x16\x03\x01", b"\x16\x03\x03\0\x01", b"\0\x10", b"\0\x0d\0\x0b\x0afairlead/1",
        b"\0\x05\0\x03\x02h2", b"\x02h2", b"\x0afairlead/1", b"\0\0", b"\xff\xff", b"\x08http/1.1",
    ];
    cni_conflist: cni::conf, 800, [
        b"{", b"}", b"[", b"]", b",", b":", b"\"", b"\\", b"\"plugins\":[", b"{\"type\":\"a\"}", b" ", b"\n",
        b"{\"type\":\"fairlead-cni\"}", b"null", b"1e9", b"\\u0070lugins",
    ];
    cni_line: cni::line, 1000, [
        b"{\"command\":\"", b"ADD", b"CHECK", b"DEL", b"GC", b"STATUS", b"\"", b",", b"[", b"]", b"/", b"\\u0000",
        b"\"ips\":[\"::1\"]", b"\"pod_uid\":\"\"", b"}",
    ];
    config_json: configuration::json, 120, [
        b"{", b"}", b"[", b"]", b",", b":", b"\"", b"null", b"true", b"1e999", b"\\ud800",
        b"\"metadata\":{\"name\":\"a\"}", b"-1", b"99999999999999999999", b"\n",
    ];
    config_yaml: configuration::yaml, 120, [
        b"---\n", b"...\n", b"&a ", b"*a", b"<<: ", b"!!str ", b"[", b"]", b"{", b"}", b",", b": ",
        b"- ", b"? ", b"|", b">-", b"\t", b"\n", b"\n  ", b"\"", b"'", b"#", b"%YAML 1.1\n", b"null",
        b"~", b"-1", b"1e999", b"0x", b".inf", b"\xef\xbb\xbf", b"\0", b"\xc2\x85", b"5s", b"\\u",
        b"99999999999999999999", b"-9223372036854775809", b"*", b"'*'", b"name: ", b"namespace: ",
        b"metadata: {name: a}", b"spec:", b"weight: 4294967295", b"port: 0",
    ];
    detect: detect::run, 700, [
        b"GET / HTTP/1.1\r\n", b" HTTP/1.0\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03",
        b" ", b"\r\n", b"\r", b"\n", b"\x01", b"CONNECT a:1 ", b"\t",
    ];
    http_head: http_head::run, 800, [
        b"GET / HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n",
        b"Content-Length: 3\r\n", b"content-length:18446744073709551615\r\n", b"Upgrade: x\r\n",
        b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"fffffffffffffffe;a=b\r\n",
        b"Content-Length : 1\r\n", b" ", b"\t", b"\0",
    ];
    http_request: http_request::run, 600, [
        b"GET ", b"CONNECT a:1 ", b"OPTIONS * ", b" 1.0\n", b" 1.1\n", b"host: a\n", b"host:\n", b"\n",
        b"connection: host, te\n", b"te: trailers\n", b"te: gzip\n", b"upgrade: websocket\n",
        b"connection: upgrade\n", b"http://a@b/", b"http://[::1]:80", b"/%2e%2e/", b"//", b"?",
        b"transfer-encoding: chunked\n", b"x-forwarded-client-cert: URI=a\n", b"upgrade: h2c\n",
        b"expect: 100-continue\n",
    ];
    map_address: map_address::run, 2000, [
        b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\x06", b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09",
        b"\x7f\0\0\x01", b"\xff\xff", b"\0\0",
    ];
    node_settings: node_settings::run, 300, [
        b"node: ", b"configDir: ", b"identity: {certTtl: 1h}\n", b"capture: ", b"unknownNetns: refuse",
        b"run: {workers: 2}\n", b"log: {level: info}\n", b"admin: 127.0.0.1:15000\n", b"{", b"}", b": ",
        b"\n", b"=debug", b",", b"[", b"]", b"trace", b"99999999999h", b"-1", b"null", b"&a ", b"*a",
    ];
    path_normal_form: path::normal_form, 700, [
        b"/", b"//", b"/.", b"/..", b"/../", b"%2e", b"%2E", b"%2f", b"%5c", b"\\", b"%00", b"%25", b"%",
        b"%2", b"%61", b"#", b"?", b"\xc3\xa9", b" ", b";", b"%252e",
    ];
    path_template: path::template, 800, [
        b"{*}", b"{**}", b"/", b"*", b"{", b"}", b"\n", b".html", b"?", b"#", b"(", b".*", b"\xc3\xa9",
    ];
    pem: pem::run, 300, [
        b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n", b"-----", b"\n", b"=", b"MII",
        b"-----BEGIN EC PRIVATE KEY-----\n", b"\r\n", b"\0",
    ];
    principal: principal::run, 1000, [
        b"*", b"/ns/", b"/sa/", b"cluster.local", b"spiffe://", b"/", b"\n", b"a", b"**", b"*a*", b"-",
    ];
    procfs: procfs::run, 800, [
        b" - cgroup2 ", b" - ", b"\\040", b"/sys/fs/cgroup", b"\n", b",", b"-", b"18446744073709551615",
        b")", b"(", b" 0",
    ];
    query_match: query_match::run, 800, [
        b"a=", b"&", b"=", b"%", b"%61", b"%ff", b"\n", b"x: 1\n", b"x: 2\n", b"cookie: a=b\n", b"+",
    ];
    rewrite: rewrite::run, 300, [
        b"\\0", b"\\1", b"\\9", b"\\\\", b"\\", b"\n", b"(.*)", b"^/", b"(", b")", b"{1000}", b"(?i)",
        b"[^/]*", b"\xc3\xa9", b".", b"|", b"\\b", b"$",
    ];
    signing_request: signing_request::run, 400, [
        b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n", b"\x30\x82",
        b"\xff\xff\xff\xff", b"spiffe://", b"\x86", b"\x2a\x86\x48\x86\xf7\x0d", b"\x01\x01\xff",
    ];
    spiffe_id: spiffe_id::run, 1500, [
        b"spiffe://", b"cluster.local", b"/ns/", b"/sa/", b"/", b"default", b"%2f", b"?", b"#", b"A", b"_",
        b".", b"..", b"\xc3\xa9",
    ];
    state_file: state_file::run, 500, [
        b"\xfe", b"\xfe\x01", b"\xfe\x02", b"\xfe\x03", b"\x0a\x02v1", b"\x12\x03Pod",
        b"\x1a\x07default", b"\x22\x01a", b"\x0a\x12", b"\x12\x011", b"\x1a\x02{}",
        b"fairlead-state\x01\n", b"\xff\xff\xff\x7f", b"..", b"/", b"\0",
    ];
    stream_meta: stream_meta::run, 1200, [
        b"for=", b"host=", b"For=\"[2001:db8::1]:80\"", b"10.0.0.1:80", b";", b",", b"\"", b"=", b"[", b"]",
        b"unknown", b"_hidden", b"%5", b"by=", b" ",
    ];
    stream_request: stream_request::run, 600, [
        b"GET ", b"CONNECT ", b"http://a:80/", b" 1.1\n", b" 1.0\n", b"host: a\n", b"host: b\n", b"\n",
        b"connection: x, te, host\n", b"te: trailers\n", b"te: gzip\n", b"upgrade: websocket\n",
        b"connection: upgrade\n", b"fairlead-client: 1.2.3.4:5\n", b"fairlead-no-host: 1\n",
        b"transfer-encoding: chunked\n", b"upgrade: fairlead-connect\n", b"fairlead-target: x:1\n",
    ];
    string_match: string_match::run, 400, [
        b"*", b"\n", b"(", b")", b"[", b"]", b"{9}", b"{1000}", b"|", b"\\", b"(?i)", b"(?x)", b"$", b"^",
        b".*", b"\\d", b"\\pL", b"\xc3\xa9", b"end-user", b":authority", b"(?P<a>",
    ];
    values: values::run, 1200, [
        b"s", b"ms", b"us", b"\xc2\xb5s", b"\xce\xbcs", b"ns", b"m", b"h", b".", b"0", b"1", b"9999999999",
        b"exact: ", b"prefix: ", b"regex: ", b"value: ", b"{", b"}", b"\"", b"65535", b"65536", b"-", b"1e2",
        b"100.0", b"nan",
    ];
    words: words::run, 1000, [
        b"5xx", b"gateway-error", b"reset", b"connect-failure", b"503", b",", b" ", b"+", b"UNAVAILABLE",
        b"CANCELED", b"16", b"http", b"grpc-web", b"-", b"mongo", b"x-a: b\n", b":authority: a\n",
        b"host: a\n", b"\n", b":", b"HTTP2",
    ];
}
