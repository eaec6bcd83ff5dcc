//! Clients that come back with a ticket, and clients that show certificates.

use std::fs;
use std::sync::Arc;

use rustls::HandshakeKind;
use teal::metrics::Handshake;

use crate::Site;
use crate::support::tls::{Authority, BOTH_VERSIONS, client_config};

/// So many that both workers get some: the kernel gives each to one of them by its port.
const MANY: usize = 20;

#[tokio::test]
async fn a_client_comes_back_with_a_ticket_to_whichever_worker() {
    let site = Site::new("").await;
    for version in BOTH_VERSIONS {
        let config = Arc::new(client_config(site.authority.roots(), &[*version], None));
        let before = site.handshakes(Handshake::Resumed);
        assert_eq!(site.serves(&config).await, Some(HandshakeKind::Full), "{version:?}");
        for _ in 0..MANY {
            assert_eq!(site.serves(&config).await, Some(HandshakeKind::Resumed), "{version:?}");
        }
        assert_eq!(site.handshakes(Handshake::Resumed) - before, MANY as u64);
    }
    assert_eq!(site.handshakes(Handshake::Full), BOTH_VERSIONS.len() as u64);
}

#[tokio::test]
async fn tickets_are_good_after_the_certificate_was_changed() {
    let site = Site::new("").await;
    let config = site.client();
    assert_eq!(site.serves(&config).await, Some(HandshakeKind::Full));
    let next = site.authority.issue(&["a.test"]);
    next.write(site.dir.path(), "next");
    site.edit(|text| text.replace("a.pem", "next.pem").replace("a.key", "next.key")).await;
    assert_eq!(site.serves(&config).await, Some(HandshakeKind::Resumed));
    let newcomer = site.connect("a.test", &site.client()).await;
    assert_eq!(newcomer.stream.get_ref().1.peer_certificates().map(<[_]>::to_vec), Some(next.chain()));
}

/// A ticket says who its owner is for as long as one follows the other, and nobody would look at the certificate again.
#[tokio::test]
async fn who_is_asked_for_a_certificate_comes_back_without_a_ticket() {
    let site = Site::new("").await;
    let config = site.client();
    assert_eq!(site.serves(&config).await, Some(HandshakeKind::Full));
    assert_eq!(site.serves(&config).await, Some(HandshakeKind::Resumed));
    let ca = site.dir.path().join("ca.pem");
    fs::write(&ca, Authority::new().pem()).expect("the test can write");
    let keys = format!(", client_ca = {ca:?}, client_auth = \"optional\" }}\n");
    site.edit(|text| text.replacen(" }\n", &keys, 1)).await;
    for _ in 0..2 {
        assert_eq!(site.serves(&config).await, Some(HandshakeKind::Full), "not even with one from before");
    }
    site.edit(|text| text.replacen(&keys, " }\n", 1)).await;
    assert_eq!(site.serves(&config).await, Some(HandshakeKind::Full));
    assert_eq!(site.serves(&config).await, Some(HandshakeKind::Resumed));
}

#[tokio::test]
async fn clients_show_the_certificates_that_they_are_asked_for() {
    let (own, other) = (Authority::new(), Authority::new());
    let (good, wrong) = (own.issue(&["client"]), other.issue(&["client"]));
    let expired = own.issue_with(&["client"], crate::support::tls::ECDSA, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let ca = own.pem();
    for (keys, without) in [("", false), (", client_auth = \"require\"", false), (", client_auth = \"optional\"", true)]
    {
        let site = Site::with(Authority::new(), |authority, dir| {
            let path = dir.path().join("clients.pem");
            fs::write(&path, &ca).expect("the test can write");
            let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
            format!("tls = {{ certificates = [{pair}], client_ca = {path:?}{keys} }}\n")
        })
        .await;
        for (shown, is_served) in [(None, without), (Some(&good), true), (Some(&wrong), false), (Some(&expired), false)]
        {
            for version in BOTH_VERSIONS {
                let config = Arc::new(client_config(site.authority.roots(), &[*version], shown));
                let served = site.serves(&config).await;
                assert_eq!(served.is_some(), is_served, "{keys} {} {version:?}", shown.is_some());
                if is_served && shown.is_some() {
                    assert_eq!(site.serves(&config).await, Some(HandshakeKind::Full), "{keys} {version:?}");
                }
            }
        }
    }
}
