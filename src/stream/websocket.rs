//! The handshake of RFC 6455, as far as a proxy has to judge it.

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Whether a `Sec-WebSocket-Key` is the base64 of 16 octets (RFC 6455 §4.1).
pub fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(is_digit)
}

/// Whether the origin's `Sec-WebSocket-Accept` answers the key (RFC 6455 §4.2.2).
pub fn is_accepted(key: &[u8], accept: Option<&[u8]>) -> bool {
    accept.is_some_and(|accept| accept.trim_ascii() == derive_accept_key(key).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let key = b"dGhlIHNhbXBsZSBub25jZQ==";
        assert!(is_key(key));
        assert!(is_accepted(key, Some(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
        assert!(!is_accepted(key, Some(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOp=")));
        assert!(!is_accepted(key, None));
    }

    #[test]
    fn keys_of_another_length_are_refused() {
        for key in [&b""[..], b"dGhl", b"dGhlIHNhbXBsZSBub25jZQ=a", b"dGhlIHNhbXBsZSBub25j\x00Q=="] {
            assert!(!is_key(key), "{key:?}");
        }
    }
}
