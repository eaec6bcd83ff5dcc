//! A second reader of HTTP/1.1, written from the grammar of RFC 9110 and RFC 9112 and from nothing of teal: it allows what
//! they call valid and nothing else.

/// Start line and fields of a head; values without the white space around them.
#[derive(Debug)]
pub struct Head<'b> {
    pub start: &'b [u8],
    pub fields: Vec<(&'b [u8], &'b [u8])>,
    /// Octets, with the empty line.
    pub length: usize,
}

/// How the end of a body is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    None,
    Length(u64),
    Chunked,
    /// Neither length nor coding.
    Unsaid,
}

/// The data of a chunked body, its trailers, and its octets in all.
#[derive(Debug)]
pub struct Chunked<'b> {
    pub data: Vec<u8>,
    pub trailers: Vec<(&'b [u8], &'b [u8])>,
    pub length: usize,
}

/// `None`: no valid head is at the front of the bytes.
pub fn head(bytes: &[u8]) -> Option<Head<'_>> {
    let end = find(bytes, b"\r\n")?;
    let start = &bytes[..end];
    if start.iter().any(|&octet| octet != b'\t' && is_control(octet)) {
        return None;
    }
    let (fields, length) = fields(&bytes[end + 2..])?;
    Some(Head { start, fields, length: end + 2 + length })
}

/// Field lines up to an empty line.
fn fields(bytes: &[u8]) -> Option<(Vec<(&[u8], &[u8])>, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let line = &bytes[at..][..find(&bytes[at..], b"\r\n")?];
        at += line.len() + 2;
        if line.is_empty() {
            return Some((found, at));
        }
        let colon = line.iter().position(|&octet| octet == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let is_value = value.iter().all(|&octet| octet == b'\t' || !is_control(octet));
        if !is_token(name) || !is_value {
            return None;
        }
        found.push((name, trim(value)));
    }
}

impl<'b> Head<'b> {
    /// Method, target and minor version of a request line.
    pub fn request_line(&self) -> Option<(&'b [u8], &'b [u8], u8)> {
        let mut parts = self.start.split(|&octet| octet == b' ');
        let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
        let minor = version.strip_prefix(b"HTTP/1.")?;
        let is_target = !target.is_empty() && !target.contains(&b'\t');
        let is_line = is_token(method) && is_target && parts.next().is_none();
        (is_line && matches!(minor, b"0" | b"1")).then(|| (method, target, minor[0] - b'0'))
    }

    /// Status and minor version of a status line.
    pub fn status_line(&self) -> Option<(u16, u8)> {
        let rest = self.start.strip_prefix(b"HTTP/1.")?;
        let [minor @ (b'0' | b'1'), b' ', digits @ ..] = rest else { return None };
        let (digits, reason) = digits.split_at_checked(3)?;
        let is_line = digits.iter().all(u8::is_ascii_digit) && (reason.is_empty() || reason[0] == b' ');
        let status = std::str::from_utf8(digits).ok()?.parse().ok()?;
        is_line.then_some((status, minor - b'0'))
    }

    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'b [u8]> + 'a {
        self.fields.iter().filter(move |field| field.0.eq_ignore_ascii_case(name.as_bytes())).map(|field| field.1)
    }

    /// The one value of a field; `Err` when there are more.
    pub fn only(&self, name: &str) -> Result<Option<&'b [u8]>, ()> {
        let mut values = self.values(name);
        let first = values.next();
        if values.next().is_some() { Err(()) } else { Ok(first) }
    }

    /// What the fields say of the body; `Err` when that is not one thing.
    pub fn body(&self) -> Result<Body, ()> {
        match (self.only("content-length")?, self.only("transfer-encoding")?) {
            (None, None) => Ok(Body::Unsaid),
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
            (Some(length), None) => match number(length, 10).ok_or(())? {
                0 => Ok(Body::None),
                length => Ok(Body::Length(length)),
            },
            _ => Err(()),
        }
    }
}

/// `Err`: no chunked body, however it goes on. `Ok(None)`: it has not ended.
pub fn chunked(bytes: &[u8]) -> Result<Option<Chunked<'_>>, ()> {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let line = &bytes[at..at + end];
        let digits = line.iter().take_while(|octet| octet.is_ascii_hexdigit()).count();
        let extension = &line[digits..];
        let is_extension = extension.is_empty() || extension[0] == b';';
        if !is_extension || extension.iter().any(|&octet| octet != b'\t' && is_control(octet)) {
            return Err(());
        }
        let size = number(&line[..digits], 16).ok_or(())?;
        at += end + 2;
        if size == 0 {
            break;
        }
        let Some(after) = usize::try_from(size).ok().and_then(|size| at.checked_add(size)) else { return Ok(None) };
        let Some(chunk) = bytes.get(at..after) else { return Ok(None) };
        data.extend_from_slice(chunk);
        match bytes[after..] {
            [b'\r', b'\n', ..] => at = after + 2,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(()),
        }
    }
    let rest = &bytes[at..];
    if !rest.starts_with(b"\r\n") && find(rest, b"\r\n\r\n").is_none() {
        return Ok(None);
    }
    let (trailers, length) = fields(rest).ok_or(())?;
    Ok(Some(Chunked { data, trailers, length: at + length }))
}

/// Digits and nothing else.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(|&octet| char::from(octet).is_digit(radix));
    if is_number { u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok() } else { None }
}

pub fn is_token(bytes: &[u8]) -> bool {
    let is_mark = |octet: &u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(octet);
    !bytes.is_empty() && bytes.iter().all(is_mark)
}

fn is_control(octet: u8) -> bool {
    octet < 0x20 || octet == 0x7f
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

pub fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
