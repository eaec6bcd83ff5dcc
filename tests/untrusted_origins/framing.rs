//! How long a body is: one length or one `chunked`, and never both.

use crate::case::{GET, HEAD, OLD_GET, Step, check, passes, refused};

#[tokio::test]
async fn a_body_has_one_framing_or_there_is_no_answer() {
    let rows = [
        ("RFC 9112 §6.3", "both framings", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        ("CVE-2019-20445", "both framings, the other way round", "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n"),
        ("RFC 9112 §6.3", "two lengths", "Content-Length: 2\r\nContent-Length: 3\r\n"),
        ("RFC 9112 §6.3", "the same length twice", "Content-Length: 2\r\nContent-Length: 2\r\n"),
        ("RFC 9112 §6.3", "two lengths apart", "Content-Length: 2\r\nX: y\r\ncontent-length: 0\r\n"),
        ("RFC 9110 §8.6", "a list of one length", "Content-Length: 2, 2\r\n"),
        ("RFC 9110 §8.6", "a list of lengths", "Content-Length: 2, 3\r\n"),
        ("RFC 9110 §8.6", "a list with an empty element", "Content-Length: 2,\r\n"),
        ("CVE-2021-32715", "a length with a plus", "Content-Length: +2\r\n"),
        ("RFC 9110 §8.6", "a negative length", "Content-Length: -2\r\n"),
        ("CVE-2022-24761", "a hexadecimal length", "Content-Length: 0x2\r\n"),
        ("CVE-2022-24761", "a length with an underscore", "Content-Length: 1_0\r\n"),
        ("RFC 9110 §8.6", "a length with a space inside", "Content-Length: 1 0\r\n"),
        ("RFC 9110 §8.6", "a length with a fraction", "Content-Length: 2.0\r\n"),
        ("RFC 9110 §8.6", "a length with an exponent", "Content-Length: 2e0\r\n"),
        ("RFC 9110 §8.6", "a length with a parameter", "Content-Length: 2;a=b\r\n"),
        ("RFC 9110 §8.6", "a length in quotes", "Content-Length: \"2\"\r\n"),
        ("RFC 9110 §8.6", "digits of another script", "Content-Length: \u{ff12}\r\n"),
        ("CVE-2023-40225", "an empty length", "Content-Length:\r\n"),
        ("CVE-2023-40225", "an empty length beside one", "Content-Length:\r\nContent-Length: 2\r\n"),
        ("RFC 9112 §6.3", "a length of 65 bits", "Content-Length: 18446744073709551616\r\n"),
        ("RFC 9112 §6.3", "a length that is 2 in 64 bits", "Content-Length: 18446744073709551618\r\n"),
        ("RFC 9112 §6.1", "chunked twice", "Transfer-Encoding: chunked, chunked\r\n"),
        ("CVE-2020-8287", "chunked in two fields", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("CVE-2020-8287", "chunked, then another", "Transfer-Encoding: chunked\r\nTransfer-Encoding: false\r\n"),
        ("RFC 9112 §6.1", "compressed chunks", "Transfer-Encoding: gzip, chunked\r\n"),
        ("RFC 9112 §6.1", "chunked that is not final", "Transfer-Encoding: chunked, gzip\r\n"),
        ("RFC 9112 §6.1", "no chunked", "Transfer-Encoding: gzip\r\n"),
        ("RFC 9112 §7", "identity, which there is no more", "Transfer-Encoding: identity\r\n"),
        ("RFC 9112 §7", "identity beside a length", "Transfer-Encoding: identity\r\nContent-Length: 2\r\n"),
        ("CVE-2019-15605", "another coding that looks like it", "Transfer-Encoding: xchunked\r\n"),
        ("CVE-2019-15605", "chunked in quotes", "Transfer-Encoding: \"chunked\"\r\n"),
        ("RFC 9112 §7", "chunked with a parameter", "Transfer-Encoding: chunked;q=1\r\n"),
        ("RFC 9112 §6.1", "a list with an empty element", "Transfer-Encoding: ,chunked\r\n"),
        ("RFC 9112 §6.1", "an empty transfer-encoding", "Transfer-Encoding:\r\n"),
        ("CVE-2019-18277", "a vertical tab before chunked", "Transfer-Encoding: \u{b}chunked\r\n"),
        ("CVE-2019-18277", "a vertical tab and a length", "Transfer-Encoding:\u{b}chunked\r\nContent-Length: 2\r\n"),
    ];
    let answer = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n2\r\nhi\r\n0\r\n\r\n");
    let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let both = "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
    let others = [
        refused("RFC 9112 §6.1", "chunked in HTTP/1.0", old),
        refused("RFC 9112 §6.3", "both framings for HEAD", format!("HTTP/1.1 200 OK\r\n{both}")).to(HEAD),
        refused("RFC 9112 §6.3", "both framings of a 304", format!("HTTP/1.1 304 Not Modified\r\n{both}")),
        refused("RFC 9112 §6.3", "both framings of a 103", format!("HTTP/1.1 103 Early Hints\r\n{both}")),
        refused(
            "RFC 9112 §6.3",
            "two lengths of a 204",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n",
        ),
        refused(
            "RFC 9112 §6.3",
            "both framings for HTTP/1.0",
            answer("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        )
        .to(OLD_GET),
    ];
    check(rows.into_iter().map(|(source, name, fields)| refused(source, name, answer(fields))).chain(others)).await;
}

#[tokio::test]
async fn a_clear_framing_goes_on() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let length = |length: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhi");
    let spelt = |coding: &str| chunked.replace("Transfer-Encoding: chunked", coding);
    check([
        passes("RFC 9110 §8.6", "a length with zeros in front", length("0002"), length("2")),
        passes("RFC 9110 §5.5", "a length with white space around", length(" \t2\t "), length("2")),
        passes("RFC 9110 §5.1", "a length in lower case", spelt("content-length: 12"), spelt("content-length: 12")),
        passes("RFC 9112 §7", "chunked in upper case", spelt("TRANSFER-ENCODING: CHUNKED"), chunked),
        passes("RFC 9112 §7", "chunked with white space around", spelt("Transfer-Encoding:\tchunked "), chunked),
        passes(
            "RFC 9112 §6.3",
            "no body at all",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
    ])
    .await;
}

/// What speaks of a body where there can be none must not make a lax client wait for one, and take the next answer.
#[tokio::test]
async fn no_length_goes_on_where_there_can_be_no_body() {
    let ends = |status: &str, fields: &str| format!("HTTP/1.1 {status}\r\n{fields}\r\n");
    let (no_content, not_modified) = ("204 No Content", "304 Not Modified");
    let plain = ends(no_content, "");
    check([
        passes("RFC 9110 §8.6", "a 204 with a length", ends(no_content, "Content-Length: 5\r\n"), &plain),
        passes("RFC 9110 §8.6", "a 204 with a length of 0", ends(no_content, "Content-Length: 0\r\n"), &plain),
        passes("RFC 9112 §6.1", "a 204 in chunks", ends(no_content, "Transfer-Encoding: chunked\r\n"), &plain),
        passes(
            "RFC 9110 §15.4.5",
            "a 304 with a length",
            ends(not_modified, "Content-Length: 5\r\n"),
            ends(not_modified, "Content-Length: 5\r\n"),
        ),
        passes(
            "RFC 9112 §6.1",
            "a 304 in chunks",
            ends(not_modified, "Transfer-Encoding: chunked\r\n"),
            ends(not_modified, ""),
        ),
        passes(
            "RFC 9110 §9.3.2",
            "HEAD with a length",
            ends("200 OK", "Content-Length: 5\r\n"),
            ends("200 OK", "Content-Length: 5\r\n"),
        )
        .to(HEAD),
        passes(
            "RFC 9110 §9.3.2",
            "HEAD in chunks",
            ends("200 OK", "Transfer-Encoding: chunked\r\n"),
            ends("200 OK", ""),
        )
        .to(HEAD),
    ])
    .await;
}

/// The origin's version and its wishes decide whether its connection is kept.
#[tokio::test]
async fn a_connection_is_kept_only_where_both_sides_know_it() {
    let answer = |version: &str, fields: &str| format!("HTTP/{version} 200 OK\r\n{fields}Content-Length: 2\r\n\r\nhi");
    let plain = answer("1.1", "");
    let kept = [
        ("RFC 9112 §9.3", "HTTP/1.0 that asks for it", "1.0", "Connection: keep-alive\r\n"),
        ("RFC 9112 §9.3", "HTTP/1.0 that asks for it loudly", "1.0", "CONNECTION: Keep-Alive\r\nKeep-Alive: 5\r\n"),
        ("RFC 9112 §9.3", "HTTP/1.1", "1.1", ""),
        ("RFC 9110 §7.6.1", "HTTP/1.1 that only speaks of a proxy", "1.1", "Proxy-Connection: close\r\n"),
    ];
    let left = [
        ("RFC 9112 §9.3", "HTTP/1.0", "1.0", ""),
        ("RFC 9112 §9.3", "HTTP/1.0 with Keep-Alive alone", "1.0", "Keep-Alive: timeout=5\r\n"),
        ("RFC 9112 §9.3", "HTTP/1.0 with Proxy-Connection", "1.0", "Proxy-Connection: keep-alive\r\n"),
        ("RFC 9112 §9.3", "HTTP/1.0 that is of two minds", "1.0", "Connection: keep-alive, close\r\n"),
        ("RFC 9112 §9.6", "HTTP/1.1 that closes", "1.1", "Connection: close\r\n"),
        ("RFC 9112 §9.6", "HTTP/1.1 that closes loudly", "1.1", "connection: CLOSE\r\n"),
        ("RFC 9112 §9.6", "HTTP/1.1 that is of two minds", "1.1", "Connection: keep-alive\r\nConnection: x, close\r\n"),
    ];
    let case = |(source, name, version, fields)| passes(source, name, answer(version, fields), &plain);
    check(kept.map(case).into_iter().chain(left.map(case).map(|case| case.once()))).await;
}

/// An answer without any framing ends with its connection, whatever it says about keeping it.
#[tokio::test]
async fn the_close_ends_what_nothing_else_does() {
    let chunked = |head: &str| format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nuntil\r\n0\r\n\r\n");
    let heads = [
        ("RFC 9112 §6.3", "HTTP/1.1", "HTTP/1.1 200 OK\r\n"),
        ("RFC 9112 §6.3", "HTTP/1.0", "HTTP/1.0 200 OK\r\n"),
        ("RFC 9112 §6.3", "HTTP/1.1 that would keep its connection", "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n"),
        ("RFC 9112 §6.3", "HTTP/1.0 that would keep its connection", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n"),
    ];
    let cases = heads.into_iter().flat_map(|(source, name, head)| {
        let answer = format!("{head}\r\nuntil");
        let to_new = passes(source, name, &answer, chunked("HTTP/1.1 200 OK\r\n")).to(GET).then(Step::Close).once();
        let old = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil";
        [to_new, passes(source, name, &answer, old).to(OLD_GET).then(Step::Close).once().and_last()]
    });
    check(cases).await;
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let (answer, end) = (format!("HTTP/1.1 200 OK\r\n\r\n{smuggled}"), format!("{:x}", smuggled.len()));
    let client = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{end}\r\n{smuggled}\r\n0\r\n\r\n");
    check([passes("RFC 9112 §6.3", "an answer in a body", answer, client).then(Step::Close).once()]).await;
}
