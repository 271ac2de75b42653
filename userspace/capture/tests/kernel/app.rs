//! The application under test: this test binary run again, in a pod, by the name of a test that
//! does nothing otherwise. It takes orders as words on its input and answers in lines.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::bed::{self, Namespace, PATIENCE};

/// The longest order takes less, on a busy machine.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// Set for the application, unset for the test run.
const VARIABLE: &str = "FAIRLEAD_CAPTURE_TEST_APP";
/// What its answers begin with; the test harness prints lines of its own.
const ANSWER: &str = "app> ";

/// An application in a pod.
pub(crate) struct App {
    child: Child,
    orders: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl App {
    pub(crate) fn new(ns: &Namespace) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &ns.name]);
        Self::start(command)
    }

    /// An application in the namespace of this process, in a cgroup of its own.
    pub(crate) fn in_cgroup(cgroup: &Path) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup);
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        bed::cgroup();
        let mut child = command
            .arg(std::env::current_exe().expect("own path"))
            .args(["--exact", "app_process", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting an application");
        let orders = child.stdin.take().expect("stdin");
        let answers = read_answers(child.stdout.take().expect("stdout"));
        Self { child, orders, answers }
    }

    /// Gives an order without waiting for the answer.
    pub(crate) fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("an order");
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> String {
        self.answers.recv_timeout(ANSWER_PATIENCE).expect("the application does not answer")
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.order(order);
        self.answer()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads on a thread, so that an application that hangs fails its test.
fn read_answers(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, answers) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // The harness may have begun the line with the test's name.
            if let Some((_, answer)) = line.split_once(ANSWER)
                && sender.send(answer.trim_end().to_owned()).is_err()
            {
                return;
            }
        }
    });
    answers
}

/// The body of the test `app_process`.
pub(crate) fn process() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    many_descriptors();
    let mut held = Held::default();
    for line in io::stdin().lines() {
        let line = line.expect("orders");
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = held.obey(&words).unwrap_or_else(|error| match error.raw_os_error() {
            Some(number) => format!("errno {number}"),
            None => format!("error {error}"),
        });
        println!("{ANSWER}{answer}");
    }
}

#[derive(Default)]
struct Held {
    streams: HashMap<String, TcpStream>,
    listeners: HashMap<String, TcpListener>,
    many: Vec<TcpStream>,
}

impl Held {
    fn obey(&mut self, words: &[&str]) -> io::Result<String> {
        match words {
            // connect NAME ADDR [family=6] [bind=ADDR] [dev=NAME] [proto=N]
            ["connect", name, to, options @ ..] => {
                let stream = connect(to.parse().expect("address"), options)?;
                let answer = format!("local={} peer={}", stream.local_addr()?, stream.peer_addr()?);
                self.streams.insert((*name).into(), stream);
                Ok(answer)
            }
            // Data in the SYN, where the system allows it.
            ["fastopen", name, to] => {
                let stream = fast_open(to.parse().expect("address"))?;
                let answer = "sent".to_owned();
                self.streams.insert((*name).into(), stream);
                Ok(answer)
            }
            ["socket", family, kind, protocol] => {
                let number = |text: &str| text.parse().expect("a number");
                let fd = raw_socket(number(family), number(kind), number(protocol))?;
                drop(fd);
                Ok("made".into())
            }
            // socket-keep NAME PROTOCOL, connect-kept NAME ADDR: in two steps.
            ["socket-keep", name, protocol] => {
                let protocol = protocol.parse().expect("a number");
                let fd = raw_socket(libc::AF_INET, libc::SOCK_STREAM, protocol)?;
                self.streams.insert((*name).into(), fd.into());
                Ok("made".into())
            }
            ["connect-kept", name, to] => {
                let stream = &self.streams[*name];
                connect_fd(stream, to.parse().expect("address"))?;
                Ok(format!("peer={}", stream.peer_addr()?))
            }
            // Opens COUNT connections and keeps them.
            ["many", count, to] => {
                let to: SocketAddr = to.parse().expect("address");
                for done in 0..count.parse::<usize>().expect("count") {
                    match TcpStream::connect(to) {
                        Ok(stream) => self.many.push(stream),
                        Err(error) => return Ok(format!("{done} then {error}")),
                    }
                }
                Ok(format!("{count} open"))
            }
            // Opens and closes connections for some time: how many were refused, how many not.
            ["churn", millis, to] => {
                let to: SocketAddr = to.parse().expect("address");
                let time = Duration::from_millis(millis.parse().expect("a time"));
                let end = Instant::now() + time;
                let (mut refused, mut open) = (0, 0);
                while Instant::now() < end {
                    match TcpStream::connect(to) {
                        Ok(_) => open += 1,
                        // A reset is how a listener that dies in the handshake refuses.
                        Err(error)
                            if matches!(
                                error.kind(),
                                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                            ) =>
                        {
                            refused += 1;
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(format!("{refused} refused, {open} open"))
            }
            // reuse PORT COUNT ADDR ADDR: one connection after the other from one port, to one and
            // the other address, each of which says where it thinks it goes and hears the echo.
            ["reuse", port, count, to @ ..] => {
                let port = port.parse().expect("port");
                let to: Vec<SocketAddr> =
                    to.iter().map(|to| to.parse().expect("address")).collect();
                for (turn, to) in (0..count.parse().expect("count")).zip(to.iter().cycle()) {
                    let answer = reuse(port, *to)?;
                    if answer != to.to_string() {
                        return Ok(format!("turn {turn}: {to} answered as {answer}"));
                    }
                }
                Ok(format!("{count} right"))
            }
            ["drop-many"] => {
                self.many.clear();
                Ok("done".into())
            }
            // listen NAME ADDR [proto=N]
            ["listen", name, at, options @ ..] => {
                let listener = listen(at.parse().expect("address"), options)?;
                let answer = listener.local_addr()?.to_string();
                self.listeners.insert((*name).into(), listener);
                Ok(answer)
            }
            ["unlisten", name] => {
                self.listeners.remove(*name);
                Ok("done".into())
            }
            // accept NAME AS: `accepted` is what accept() said, `peer` what getpeername() says.
            ["accept", name, stream] => {
                let listener = &self.listeners[*name];
                let (accepted, peer) = listener.accept()?;
                accepted.set_read_timeout(Some(PATIENCE))?;
                let answer = format!(
                    "accepted={peer} peer={} local={}",
                    accepted.peer_addr()?,
                    accepted.local_addr()?
                );
                self.streams.insert((*stream).into(), accepted);
                Ok(answer)
            }
            ["peer", name] => Ok(self.streams[*name].peer_addr()?.to_string()),
            ["send", name, text] => {
                self.streams.get_mut(*name).expect("stream").write_all(text.as_bytes())?;
                Ok("sent".into())
            }
            ["receive", name, count] => {
                let mut buffer = vec![0; count.parse().expect("count")];
                let stream = self.streams.get_mut(*name).expect("stream");
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.read_exact(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer).into_owned())
            }
            ["close", name] => {
                self.streams.remove(*name);
                Ok("closed".into())
            }
            ["udp", to] => {
                let to: SocketAddr = to.parse().expect("address");
                let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
                socket.connect(to)?;
                Ok(format!("peer={}", socket.peer_addr()?))
            }
            other => Ok(format!("error: what is {other:?}?")),
        }
    }
}

fn listen(at: SocketAddr, options: &[&str]) -> io::Result<TcpListener> {
    let protocol = options.iter().find_map(|option| option.strip_prefix("proto="));
    // The standard library's has SO_REUSEADDR.
    let Some(protocol) = protocol else { return TcpListener::bind(at) };
    let family = if at.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let protocol = protocol.parse().expect("a protocol");
    let socket = raw_socket(family, libc::SOCK_STREAM, protocol)?;
    let sa = sockaddr(at, at.is_ipv6());
    // SAFETY: a live address, large enough for either family.
    if unsafe { libc::bind(socket.as_raw_fd(), sa.as_ptr(), sa.len()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers.
    if unsafe { libc::listen(socket.as_raw_fd(), 16) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpListener::from(socket))
}

/// A connection from `port` that is reset at its end, so that the port is free at once.
fn reuse(port: u16, to: SocketAddr) -> io::Result<String> {
    let socket = raw_socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let on: libc::c_int = 1;
    // SAFETY: live option values of the sizes given.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        );
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        );
    }
    let sa = sockaddr(SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), port), false);
    // SAFETY: a live address, large enough for either family.
    if unsafe { libc::bind(socket.as_raw_fd(), sa.as_ptr(), sa.len()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut stream = TcpStream::from(socket);
    connect_fd(&stream, to)?;
    stream.write_all(b"?")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        answer.push(byte[0].into());
    }
    Ok(answer)
}

/// Lets this process have as many descriptors as the system allows; returns how many.
pub(crate) fn many_descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live limit, for both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    usize::try_from(limit.rlim_cur).expect("a number")
}

fn raw_socket(family: i32, kind: i32, protocol: i32) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

fn connect(to: SocketAddr, options: &[&str]) -> io::Result<TcpStream> {
    let option =
        |name: &str| options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let v6 = to.is_ipv6() || option("family") == Some("6");
    let protocol = option("proto").map_or(0, |proto| proto.parse().expect("a protocol"));
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let stream = TcpStream::from(raw_socket(family, libc::SOCK_STREAM, protocol)?);
    if let Some(device) = option("dev") {
        // SAFETY: a live name of the length given.
        let ret = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                device.as_ptr().cast(),
                device.len() as libc::socklen_t,
            )
        };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if let Some(source) = option("bind") {
        let port = |ip: IpAddr| SocketAddr::new(ip, 0);
        let source: SocketAddr =
            source.parse().or_else(|_| source.parse().map(port)).expect("an address");
        let sa = sockaddr(source, v6);
        // SAFETY: a live address, large enough for either family.
        if unsafe { libc::bind(stream.as_raw_fd(), sa.as_ptr(), sa.len()) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let sa = sockaddr(to, v6);
    // SAFETY: as above.
    if unsafe { libc::connect(stream.as_raw_fd(), sa.as_ptr(), sa.len()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connects a socket that exists.
pub(crate) fn connect_fd(stream: &TcpStream, to: SocketAddr) -> io::Result<()> {
    let sa = sockaddr(to, to.is_ipv6());
    // SAFETY: a live address, large enough for either family.
    if unsafe { libc::connect(stream.as_raw_fd(), sa.as_ptr(), sa.len()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn fast_open(to: SocketAddr) -> io::Result<TcpStream> {
    let v6 = to.is_ipv6();
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let stream = TcpStream::from(raw_socket(family, libc::SOCK_STREAM, 0)?);
    let sa = sockaddr(to, v6);
    // SAFETY: live data and address.
    let sent = unsafe {
        libc::sendto(
            stream.as_raw_fd(),
            b"early".as_ptr().cast(),
            5,
            libc::MSG_FASTOPEN,
            sa.as_ptr(),
            sa.len(),
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    std::thread::sleep(Duration::from_millis(50));
    Ok(stream)
}

struct Sockaddr {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    is_v6: bool,
}

impl Sockaddr {
    fn as_ptr(&self) -> *const libc::sockaddr {
        if self.is_v6 { (&raw const self.v6).cast() } else { (&raw const self.v4).cast() }
    }

    fn len(&self) -> libc::socklen_t {
        let len = if self.is_v6 { size_of_val(&self.v6) } else { size_of_val(&self.v4) };
        len as libc::socklen_t
    }
}

fn sockaddr(addr: SocketAddr, v6: bool) -> Sockaddr {
    let (v4_ip, v6_ip) = match addr.ip() {
        IpAddr::V4(v4) => (u32::from(v4), v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => (0, v6),
    };
    Sockaddr {
        v4: libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: addr.port().to_be(),
            sin_addr: libc::in_addr { s_addr: v4_ip.to_be() },
            sin_zero: [0; 8],
        },
        v6: libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as libc::sa_family_t,
            sin6_port: addr.port().to_be(),
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: v6_ip.octets() },
            sin6_scope_id: 0,
        },
        is_v6: v6,
    }
}
