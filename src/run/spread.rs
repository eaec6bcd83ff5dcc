//! How connections that stay are spread over the workers.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// Both ends are in this process, and 20,000 descriptors are a common limit.
const MANY: usize = 9_500;

/// A proxy with a TCP and a unix listener.
fn start(dir: &Path, workers: usize) -> Proxy {
    let text = format!(
        "state_dir = {:?}\nworkers = {workers}\nadmin.listen = \"off\"\n[limits]\nconnections = 30000\nheader_timeout = \"1h\"\n\
         [[listeners]]\nlisten = \"127.0.0.1:0\"\n[[listeners]]\nlisten = \"unix:{}\"\n",
        dir.join("state"),
        dir.join("socket").display()
    );
    Proxy::start(config::parse(&text, Path::new("test.toml")).expect("a valid config")).expect("it starts")
}

/// How many connections each worker has once there are `count`.
fn spread(proxy: &Proxy, count: usize) -> Vec<usize> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let spread: Vec<usize> = proxy.shared.rosters.iter().map(|roster| roster.len()).collect();
        if spread.iter().sum::<usize>() == count {
            return spread;
        }
        assert!(Instant::now() < deadline, "{spread:?} of {count}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn tcp(proxy: &Proxy) -> TcpStream {
    let Address::Tcp(address) = proxy.addresses()[0] else { panic!("a TCP listener") };
    TcpStream::connect(address).expect("it accepts")
}

fn unix(proxy: &Proxy) -> UnixStream {
    let Address::Unix(path) = &proxy.addresses()[1] else { panic!("a unix listener") };
    UnixStream::connect(path).expect("it accepts")
}

fn measure<T>(workers: usize, count: usize, connect: impl Fn(&Proxy) -> T) -> Vec<usize> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let proxy = start(dir.path(), workers);
    let connections: Vec<T> = (0..count).map(|_| connect(&proxy)).collect();
    let spread = spread(&proxy, count);
    drop(connections);
    spread
}

/// Each connection goes to either with the same chance: a share this far from the half is nine standard deviations off.
#[test]
fn connections_are_spread_evenly_over_the_workers() {
    let spread = measure(2, 2_000, tcp);
    assert!(spread.iter().all(|count| *count > 800), "{spread:?}");
    assert_eq!(measure(4, 2_000, unix), [500; 4], "those of a unix socket are dealt");
}

#[test]
#[ignore = "a measurement: cargo test --lib spread -- --ignored --nocapture"]
fn nearly_ten_thousand_connections_over_the_workers() {
    for workers in [2, 3, 4] {
        println!("{workers} workers, TCP: {:?}", measure(workers, MANY, tcp));
        println!("{workers} workers, unix: {:?}", measure(workers, MANY, unix));
    }
}
