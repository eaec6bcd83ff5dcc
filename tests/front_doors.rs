//! Real balancers in front, where they are installed; and listeners that change while they are used.

mod support;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::client::{Client, get};
use support::exchange::Stage;
use support::origin::{Origin, Requests, read_head};
use support::proxy::{Builder, Teal};
use support::{PATIENCE, eventually, scratch, soon};
use teal::config::Address;
use teal::service::Kind;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const REQUIRE: &str = "proxy_protocol = \"require\"\ntrusted_proxies = [\"127.0.0.1\"]";

/// Another program in front of teal, on an address of the loopback that nobody else uses. Ended on drop.
struct Balancer {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Balancer {
    /// With `config` for the address; `None` if it is not installed.
    async fn start(program: &str, config: impl FnOnce(&Path, SocketAddr) -> String) -> Option<Balancer> {
        let Some(path) = find(program, &["/usr/sbin", "/usr/local/sbin"]) else {
            println!("skipped: no {program}");
            return None;
        };
        let folder = scratch();
        let address = SocketAddr::from((own_address(), 8080));
        let file = folder.path().join(format!("{program}.conf"));
        fs::write(&file, config(folder.path(), address)).expect("the config is written");
        let log = File::create(folder.path().join("log")).expect("a log");
        let mut command = Command::new(path);
        match program {
            "nginx" => command.arg("-p").arg(folder.path()).args(["-e", "stderr", "-c"]).arg(&file),
            _ => command.args(["-db", "-f"]).arg(&file),
        };
        let output = log.try_clone().expect("a log");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().expect("it starts");
        let balancer = Balancer { child, address, _folder: folder };
        let listening = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, listening).await.is_err() {
            let log = fs::read_to_string(balancer._folder.path().join("log"));
            panic!("{program} does not start: {}", log.unwrap_or_default());
        }
        Some(balancer)
    }
}

/// Random enough that no other test, here or in another process, has it.
fn own_address() -> Ipv4Addr {
    let [.., a, b, c] = fastrand::u32(..).to_be_bytes();
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
}

fn find(name: &str, folders: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(folders.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn haproxy(mode: &str, address: SocketAddr, rest: &str) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 500\n\
         defaults\n  mode {mode}\n  retries 0\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n\
         frontend in\n  bind {address}\n  default_backend teal\nbackend teal\n{rest}\n"
    )
}

async fn start(listener: &str) -> (Teal, Origin, Requests) {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener(listener).start().await;
    (teal, origin, requests)
}

/// A client whose address is its own.
async fn connect_from(client: Ipv4Addr, to: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((client, 0))).expect("an address of the loopback");
    Client::on(socket.connect(to).await.expect("the balancer accepts"))
}

/// Who comes through the balancer is known by name, with all requests, and so is the port that was asked.
async fn expect_clients(balancer: &Balancer, requests: &Requests) {
    for _ in 0..3 {
        let client = own_address();
        let mut connection = connect_from(client, balancer.address).await;
        for _ in 0..2 {
            assert_eq!(connection.ask(GET).await.status, 200);
            let request = requests.lock().pop().expect("a request");
            assert_eq!(request.field("x-forwarded-for"), Some(&*client.to_string()));
            assert_eq!(request.field("x-forwarded-port"), Some("8080"));
        }
    }
}

#[tokio::test]
async fn haproxy_says_by_either_version_whose_connection_it_passes_on() {
    for keyword in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"] {
        let (teal, _origin, requests) = start(REQUIRE).await;
        let server = format!(
            "  timeout check 10s\n  server teal {} check check-send-proxy inter 20ms {keyword}\n",
            teal.address
        );
        let Some(balancer) = Balancer::start("haproxy", |_, address| haproxy("tcp", address, &server)).await else {
            return;
        };
        expect_clients(&balancer, &requests).await;
    }
}

#[tokio::test]
async fn nginx_says_whose_connection_it_passes_on() {
    let Some(module) = nginx_stream() else { return println!("skipped: no stream module of nginx") };
    let (teal, _origin, requests) = start(REQUIRE).await;
    let config = |folder: &Path, address| {
        format!(
            "daemon off; master_process off; worker_processes 1; pid {}/pid; error_log stderr crit;\n\
             load_module {};\nevents {{ worker_connections 500; }}\n\
             stream {{ server {{ listen {address}; proxy_pass {}; proxy_protocol on; }} }}\n",
            folder.display(),
            module.display(),
            teal.address
        )
    };
    let Some(balancer) = Balancer::start("nginx", config).await else { return };
    expect_clients(&balancer, &requests).await;
}

/// `TEAL_NGINX_MODULES` names a further folder.
fn nginx_stream() -> Option<PathBuf> {
    let own = std::env::var("TEAL_NGINX_MODULES").unwrap_or_default();
    find("ngx_stream_module.so", &[&own, "/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"])
}

/// What `shutdown_delay` is for: the balancer asks `ready_path`, and leaves before the doors close.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_loses_no_request_to_a_proxy_that_stops() {
    let origin = Origin::saying("ok").await;
    let build = || Builder::app(&[&origin]).top("shutdown_delay = \"3s\"\n").start();
    let (one, other) = (build().await, build().await);
    let server = |name: &str, teal: &Teal, fall| {
        format!("  server {name} {} check inter 20ms rise 1 fall {fall}\n", teal.address)
    };
    // On a busy machine a good answer may be late.
    let check = "  balance roundrobin\n  timeout check 10s\n  option httpchk GET /.well-known/teal/ready\n  http-reuse always\n";
    let backend = [check, &server("one", &one, 1), &server("other", &other, 100)].concat();
    let Some(balancer) = Balancer::start("haproxy", |_, address| haproxy("http", address, &backend)).await else {
        return;
    };
    eventually("haproxy has found both", || {
        let has_clients = |teal: &Teal| teal.state().listeners()[0].1.connections.load(Ordering::SeqCst) > 0;
        has_clients(&one) && has_clients(&other)
    })
    .await;
    let (is_over, address) = (Arc::new(AtomicBool::new(false)), balancer.address);
    let load = tokio::spawn({
        let is_over = is_over.clone();
        async move {
            let mut served = 0;
            while !is_over.load(Ordering::SeqCst) {
                let mut client = Client::connect(address).await;
                for _ in 0..10 {
                    assert_eq!(client.ask(GET).await.status, 200, "after {served} requests");
                    served += 1;
                }
            }
            served
        }
    });
    one.proxy().begin_stop();
    eventually("it has stopped", || one.proxy().is_stopped()).await;
    is_over.store(true, Ordering::SeqCst);
    assert!(load.await.expect("every request was answered") > 0);
}

/// A client by way of a dual-stack listener has the address that it has by any other.
#[tokio::test]
async fn listeners_of_every_family_serve_side_by_side() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return println!("skipped: no IPv6");
    }
    let (origin, requests) = Origin::recording().await;
    let dir = scratch();
    let socket = dir.path().join("front.sock");
    let more = format!(
        "[[listeners]]\nlisten = \"[::1]:0\"\n[[listeners]]\nlisten = \"[::]:0\"\n[[listeners]]\nlisten = \"unix:{}\"",
        socket.display()
    );
    let teal = Builder::app(&[&origin]).service(&more).start().await;
    let port = |place: usize| match &teal.proxy().addresses()[place] {
        Address::Tcp(address) => address.port(),
        Address::Unix(_) => panic!("a TCP listener"),
    };
    for (ip, port) in [("127.0.0.1", port(0)), ("::1", port(1)), ("::1", port(2)), ("127.0.0.1", port(2))] {
        let address = SocketAddr::new(ip.parse().expect("an address"), port);
        assert_eq!(get(address, "/").await.status, 200, "{address}");
        let request = requests.lock().pop().expect("a request");
        assert_eq!(request.field("x-forwarded-for"), Some(ip), "{address}");
        assert_eq!(request.field("x-forwarded-port"), Some(&*port.to_string()));
    }
    let mut client = UnixStream::connect(&socket).await.expect("the proxy accepts");
    client.write_all(GET.as_bytes()).await.expect("the proxy reads");
    let answer = soon("an answer", read_head(&mut client, &mut Vec::new())).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(requests.lock()[0].field("x-forwarded-port"), None);
}

/// Those of a unix socket may be served by another worker than the one that accepts and waits for room.
#[tokio::test]
async fn connections_of_a_unix_socket_beyond_the_limit_wait_and_are_served() {
    let origin = Origin::saying("ok").await;
    let dir = scratch();
    let socket = dir.path().join("front.sock");
    let listener = format!("[[listeners]]\nlisten = \"unix:{}\"\nconnections = 1", socket.display());
    let teal = Builder::app(&[&origin]).service(&listener).workers(3).start().await;
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let mut client = UnixStream::connect(&socket).await.expect("the proxy accepts");
        client.write_all(GET.as_bytes()).await.expect("there is room in its buffer");
        waiting.push(tokio::spawn(async move { read_head(&mut client, &mut Vec::new()).await }));
    }
    for client in waiting {
        let answer = soon("an answer", client).await.expect("no panic").expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    soon("the stop", teal.stop()).await;
}

/// As an operator would who edits the file; resolves when it is in effect.
async fn change(teal: &Teal, builder: Builder) {
    let applied = || teal.state().stats.reloads_applied.load(Ordering::SeqCst);
    let before = applied();
    // It is watched: were it told to read it as well, one of the two would be taken for that of the next change.
    builder.write(teal.dir());
    eventually("the file is read", || applied() > before).await;
}

#[tokio::test]
async fn a_listener_that_changes_touches_no_connection_that_is_open() {
    let stage = Stage::new().await;
    let other = |keys: &str| format!("[[listeners]]\nlisten = \"127.0.0.2:0\"\n{keys}\n");
    let build = |first: &str, more: &str| Builder::new(&format!("{}{more}", stage.service("a", ""))).listener(first);
    let teal = build("", &other("")).start_watching().await;
    let Address::Tcp(second) = teal.proxy().addresses()[1] else { panic!("a TCP listener") };
    assert_eq!(second.ip(), IpAddr::from([127, 0, 0, 2]));
    let mut kept = Vec::new();
    let mut streams = Vec::new();
    for address in [teal.address, second] {
        let mut client = Client::connect(address).await;
        assert_eq!(client.get("/a").await.text(), "blue");
        kept.push(client);
        streams.push(stage.open(address, "a", Kind::WebSocket).await);
    }
    let changes = [
        (REQUIRE, ""),
        ("redirect_to_https = true", ""),
        ("redirect_to_https = true", "header_timeout = \"1s\""),
        ("ready_path = \"/up\"", "proxy_protocol = \"accept\"\ntrusted_proxies = [\"127.0.0.1\"]"),
    ];
    let third = "[[listeners]]\nlisten = \"127.0.0.3:0\"\n";
    for (place, (first, keys)) in changes.into_iter().enumerate() {
        // A further one comes and goes meanwhile.
        let more = format!("{}{}", other(keys), if place % 2 == 0 { third } else { "" });
        change(&teal, build(first, &more)).await;
        let mut fresh = Client::connect(teal.address).await;
        fresh.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let fresh = fresh.try_answer(false).await.map(|answer| answer.status);
        let expected = [None, Some(308), Some(308), Some(200)][place];
        assert_eq!(fresh, expected, "a new connection, after {first}");
        assert_eq!(get(second, "/a").await.text(), "blue", "another listener, after {keys}");
        for client in &mut kept {
            let answer = client.get("/a").await;
            assert_eq!((answer.text(), answer.field("connection")), ("blue", None), "after {first}, {keys}");
        }
    }
    for stream in streams {
        stream.release();
        assert_eq!(stream.ending().await.as_deref(), Some("blue"));
    }
}
