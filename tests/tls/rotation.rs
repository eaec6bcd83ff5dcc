//! Certificates are renewed while the proxy runs: it notices by itself, and nobody who is connected does.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use teal::config::Problems;

use crate::support::tls::{Authority, Pair};
use crate::support::{eventually, replace};
use crate::{GET, Site};

/// The certificate that a newcomer is shown.
async fn shown(site: &Site) -> Vec<CertificateDer<'static>> {
    let mut client = site.connect("a.test", &site.client()).await;
    assert_eq!(client.ask(GET).await.text(), "ok");
    client.stream.get_ref().1.peer_certificates().expect("a certificate").to_vec()
}

/// Reloads so far: applied and rejected.
fn reloads(site: &Site) -> (u64, u64) {
    let stats = &site.teal.state().stats;
    let load = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::SeqCst);
    (load(&stats.reloads_applied), load(&stats.reloads_rejected))
}

async fn reloaded(site: &Site, expected: (u64, u64)) -> Option<Problems> {
    eventually(&format!("{expected:?} reloads have been applied and rejected"), || reloads(site) == expected).await;
    site.teal.state().problems()
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_and_open_connections_stay() {
    let site = Site::new("").await;
    let mut before = site.connect("a.test", &site.client()).await;
    assert_eq!(before.ask(GET).await.text(), "ok");
    for n in 1..=3 {
        let next = site.authority.issue(&["a.test"]);
        next.write(site.dir.path(), "a");
        assert_eq!(reloaded(&site, (n, 0)).await, None);
        assert_eq!(shown(&site).await, next.chain());
        assert_eq!(before.ask(GET).await.text(), "ok");
    }
}

#[tokio::test]
async fn what_cannot_be_used_leaves_the_old_certificate_in_use_and_is_named() {
    let site = Site::new("").await;
    let old = shown(&site).await;
    let (cert, key) = (site.dir.path().join("a.pem"), site.dir.path().join("a.key"));
    let next = site.authority.issue(&["a.test"]);
    let steps: [(&str, &Path, &dyn Fn()); 6] = [
        ("garbage", &cert, &|| replace(&cert, [7; 5000])),
        ("half a file", &cert, &|| replace(&cert, &next.cert[..next.cert.len() / 2])),
        ("an empty file", &cert, &|| replace(&cert, "")),
        ("the certificate of another key", &key, &|| replace(&cert, &next.cert)),
        ("no key", &key, &|| fs::remove_file(&key).expect("the test can remove")),
        ("no certificate", &cert, &|| {
            replace(&key, &next.key);
            fs::remove_file(&cert).expect("the test can remove");
        }),
    ];
    for (n, (what, file, step)) in steps.into_iter().enumerate() {
        step();
        let problems = reloaded(&site, (0, n as u64 + 1)).await.expect("problems").to_string();
        assert!(problems.contains(&file.display().to_string()), "{what}: {problems}");
        assert!(!problems.contains("BEGIN"), "{what}: {problems}");
        assert_eq!(shown(&site).await, old, "{what}");
    }
    replace(&cert, &next.cert);
    assert_eq!(reloaded(&site, (1, 6)).await, None);
    assert_eq!(shown(&site).await, next.chain());
}

#[tokio::test]
async fn a_file_that_is_named_before_it_is_there_is_taken_when_it_comes() {
    let site = Site::new("").await;
    let old = shown(&site).await;
    let text = fs::read_to_string(site.teal.file()).expect("the file is there");
    replace(&site.teal.file(), text.replace("a.pem", "next.pem").replace("a.key", "next.key"));
    assert!(reloaded(&site, (0, 1)).await.is_some());
    assert_eq!(shown(&site).await, old);
    let next = site.authority.issue(&["a.test"]);
    next.write(site.dir.path(), "next");
    assert_eq!(reloaded(&site, (1, 1)).await, None);
    assert_eq!(shown(&site).await, next.chain());
    // Nobody asks for the old ones any more, and the new ones go on being watched.
    let third = site.authority.issue(&["a.test"]);
    third.write(site.dir.path(), "next");
    assert_eq!(reloaded(&site, (2, 1)).await, None);
    assert_eq!(shown(&site).await, third.chain());
}

/// How Kubernetes renews what it has mounted: the link `..data` changes place, and all files with it.
#[tokio::test]
async fn a_swapped_secret_of_kubernetes_is_taken() {
    let authority = Authority::new();
    let pairs: [Pair; 2] = [authority.issue(&["a.test"]), authority.issue(&["a.test"])];
    let site = Site::with(authority, |_, dir| {
        let at = |name: &str| dir.path().join(name);
        for (version, pair) in ["..1", "..2"].into_iter().zip(&pairs) {
            fs::create_dir(at(version)).expect("a directory");
            fs::write(at(version).join("tls.crt"), &pair.cert).expect("the test can write");
            fs::write(at(version).join("tls.key"), &pair.key).expect("the test can write");
        }
        symlink("..1", at("..data")).expect("a link");
        symlink("..data/tls.crt", at("tls.crt")).expect("a link");
        symlink("..data/tls.key", at("tls.key")).expect("a link");
        format!("tls = {{ certificates = [{{ cert = {:?}, key = {:?} }}] }}\n", at("tls.crt"), at("tls.key"))
    })
    .await;
    assert_eq!(shown(&site).await, pairs[0].chain());
    symlink("..2", site.dir.path().join("..data_tmp")).expect("a link");
    fs::rename(site.dir.path().join("..data_tmp"), site.dir.path().join("..data")).expect("it takes its place");
    assert_eq!(reloaded(&site, (1, 0)).await, None);
    assert_eq!(shown(&site).await, pairs[1].chain());
}

/// `check` must say so, and a reload must not go on with the authorities of before.
#[tokio::test]
async fn authorities_of_clients_that_cannot_be_used_are_a_problem_of_the_config() {
    let ca = Authority::new();
    let site = Site::with(Authority::new(), |authority, dir| {
        let path = dir.path().join("clients.pem");
        fs::write(&path, ca.pem()).expect("the test can write");
        let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
        format!("tls = {{ certificates = [{pair}], client_ca = {path:?} }}\n")
    })
    .await;
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    replace(&site.dir.path().join("clients.pem"), ca.pem() + garbage);
    let problems = reloaded(&site, (0, 1)).await.expect("a problem").to_string();
    assert!(problems.contains("clients.pem"), "{problems}");
}

#[tokio::test]
async fn changed_authorities_of_clients_are_taken() {
    let (first, second) = (Authority::new(), Authority::new());
    let site = Site::with(Authority::new(), |authority, dir| {
        let path = dir.path().join("clients.pem");
        fs::write(&path, first.pem()).expect("the test can write");
        let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
        format!("tls = {{ certificates = [{pair}], client_ca = {path:?} }}\n")
    })
    .await;
    let [of_first, of_second] = [&first, &second].map(|authority| authority.issue(&["client"]));
    let serves = async |pair| site.serves(&site.client_with(Some(pair))).await.is_some();
    assert_eq!((serves(&of_first).await, serves(&of_second).await), (true, false));
    replace(&site.dir.path().join("clients.pem"), second.pem());
    assert_eq!(reloaded(&site, (1, 0)).await, None);
    assert_eq!((serves(&of_first).await, serves(&of_second).await), (false, true));
    replace(&site.dir.path().join("clients.pem"), first.pem() + &second.pem());
    assert_eq!(reloaded(&site, (2, 0)).await, None);
    assert_eq!((serves(&of_first).await, serves(&of_second).await), (true, true));
}
