//! Our own reading of RFC 9112, so that what a proxy forwards is judged by
//! someone else's parser.
//!
//! [`Reading::Strict`] is what an unforgiving origin takes. [`Reading::Tolerant`]
//! also takes what the RFC lets a recipient repair, where the repair has one
//! outcome; a proxy may repair so or reject, but may not read it differently.
//!
//! Deliberately unknown here: sockets, and limits.

/// How forgiving a reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The grammar and nothing else.
    Strict,
    /// Also what RFC 9112 permits a recipient to repair.
    Tolerant,
}

/// What the bytes begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A message, and how many bytes it takes.
    Message(T, usize),
    /// The beginning of one.
    Incomplete,
    /// Something that has to be refused, and why.
    Invalid(&'static str),
}

/// Header fields in order; names in lower case, values with a character per byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

/// A request as the origin reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method token.
    pub method: String,
    /// Request target as sent.
    pub target: String,
    /// Minor version: 0 or 1.
    pub minor: u8,
    /// Header fields.
    pub fields: Fields,
    /// Body, without its transfer coding.
    pub body: Vec<u8>,
    /// Trailer fields.
    pub trailers: Fields,
    /// Nothing may follow on this connection, since the framing was repaired.
    pub last: bool,
}

/// A response as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Minor version: 0 or 1.
    pub minor: u8,
    /// Header fields.
    pub fields: Fields,
    /// Body, without its transfer coding.
    pub body: Vec<u8>,
    /// Trailer fields.
    pub trailers: Fields,
    /// The body ends with the connection.
    pub until_close: bool,
}

impl Fields {
    /// All values of a field (name in lower case).
    pub fn all(&self, name: &'static str) -> impl Iterator<Item = &str> + use<'_> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The only value of a field, `None` when it is missing.
    ///
    /// # Panics
    /// When there are several.
    pub fn one(&self, name: &'static str) -> Option<&str> {
        let mut values = self.all(name);
        let first = values.next();
        assert!(values.next().is_none(), "several fields {name}: {:?}", self.0);
        first
    }

    /// Whether a comma-separated list holds this token, in any case.
    pub fn lists(&self, name: &'static str, token: &str) -> bool {
        self.all(name).flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
    }
}

impl Request {
    /// Host and path of the target, wherever the request says them.
    pub fn resource(&self) -> (String, String) {
        let host = || self.fields.all("host").next().unwrap_or_default().to_ascii_lowercase();
        let Some(rest) = absolute(&self.target) else { return (host(), self.target.clone()) };
        let cut = rest.find(['/', '?']).unwrap_or(rest.len());
        let path = match &rest[cut..] {
            "" => "/".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        (rest[..cut].to_ascii_lowercase(), path)
    }
}

/// Reads one request from the beginning of `bytes`.
pub fn request(bytes: &[u8], reading: Reading) -> Parsed<Request> {
    match read_request(bytes, reading) {
        Ok((request, length)) => Parsed::Message(request, length),
        Err(Stop::Incomplete) => Parsed::Incomplete,
        Err(Stop::Invalid(why)) => Parsed::Invalid(why),
    }
}

/// Reads one response to `method` from the beginning of `bytes`. One that is
/// ended by the connection is returned with the body so far.
pub fn response(bytes: &[u8], method: &str) -> Parsed<Response> {
    match read_response(bytes, method) {
        Ok((response, length)) => Parsed::Message(response, length),
        Err(Stop::Incomplete) => Parsed::Incomplete,
        Err(Stop::Invalid(why)) => Parsed::Invalid(why),
    }
}

/// Reads the head of a request without its body, with the length of the head.
pub fn request_head(bytes: &[u8]) -> Parsed<Request> {
    match read_request_head(bytes, Reading::Strict) {
        Ok((request, length)) => Parsed::Message(request, length),
        Err(Stop::Incomplete) => Parsed::Incomplete,
        Err(Stop::Invalid(why)) => Parsed::Invalid(why),
    }
}

/// Reads the head of a response without its body, with the length of the head.
pub fn response_head(bytes: &[u8]) -> Parsed<Response> {
    match read_response_head(bytes) {
        Ok((response, length)) => Parsed::Message(response, length),
        Err(Stop::Incomplete) => Parsed::Incomplete,
        Err(Stop::Invalid(why)) => Parsed::Invalid(why),
    }
}

enum Stop {
    Incomplete,
    Invalid(&'static str),
}

type Read<T> = Result<T, Stop>;

fn invalid<T>(why: &'static str) -> Read<T> {
    Err(Stop::Invalid(why))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    reading: Reading,
}

impl<'a> Cursor<'a> {
    /// A line of the start line or of fields. RFC 9112 §2.2: a lone LF may end
    /// it, a lone CR may be read as a space.
    fn line(&mut self) -> Read<Vec<u8>> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|&b| b == b'\n') else {
            // A CR that is not followed by LF is known to be wrong before the line ends.
            let lone = rest.windows(2).any(|w| w[0] == b'\r');
            return if lone && self.reading == Reading::Strict {
                invalid("a lone CR")
            } else {
                Err(Stop::Incomplete)
            };
        };
        self.at += end + 1;
        let line = &rest[..end];
        match (line.strip_suffix(b"\r"), self.reading) {
            (Some(line), Reading::Strict) if line.contains(&b'\r') => invalid("a lone CR"),
            (None, Reading::Strict) => invalid("a lone LF"),
            (Some(line), Reading::Strict) => Ok(line.to_vec()),
            (line_without_cr, Reading::Tolerant) => {
                let line = line_without_cr.unwrap_or(line);
                Ok(line.iter().map(|&b| if b == b'\r' { b' ' } else { b }).collect())
            }
        }
    }

    /// A line of the chunked coding: always CRLF, no other CR or LF within.
    fn chunk_line(&mut self) -> Read<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|&b| b == b'\r' || b == b'\n') else {
            return Err(Stop::Incomplete);
        };
        match &rest[end..] {
            [b'\r', b'\n', ..] => {
                self.at += end + 2;
                Ok(&rest[..end])
            }
            [b'\r'] => Err(Stop::Incomplete),
            _ => invalid("a chunk line not ended by CRLF"),
        }
    }

    fn take(&mut self, length: u64) -> Read<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = usize::try_from(length).ok().and_then(|n| rest.get(..n)) else {
            return Err(Stop::Incomplete);
        };
        self.at += taken.len();
        Ok(taken)
    }

    fn fields(&mut self, first: bool) -> Read<Fields> {
        let mut fields = Fields::default();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            if matches!(line[0], b' ' | b'\t') {
                // §2.2: before the first field such a line may be dropped; §5.2: after one it may
                // continue that field.
                match (self.reading, fields.0.last_mut()) {
                    (Reading::Strict, _) => return invalid("a line that begins with white space"),
                    (Reading::Tolerant, None) if first => {}
                    (Reading::Tolerant, None) => {
                        return invalid("a trailer that begins with white space");
                    }
                    (Reading::Tolerant, Some((_, value))) => {
                        *value = format!("{value} {}", value_text(&line)?).trim().to_owned();
                    }
                }
                continue;
            }
            let Some(colon) = line.iter().position(|&b| b == b':') else {
                return invalid("a field without a colon");
            };
            if colon == 0 || !line[..colon].iter().copied().all(is_token) {
                return invalid("a field name that is no token");
            }
            let name = latin(&line[..colon]).to_ascii_lowercase();
            fields.0.push((name, value_text(&line[colon + 1..])?));
        }
    }

    /// RFC 9112 §7.1.
    fn chunked(&mut self) -> Read<(Vec<u8>, Fields)> {
        let mut body = Vec::new();
        loop {
            let line = self.chunk_line()?;
            let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
            let size = u64::from_str_radix(&latin(&line[..digits]), 16);
            let Ok(size) = size else { return invalid("a chunk size that is no number") };
            let after = latin(&line[digits..]);
            let after = after.trim_start_matches([' ', '\t']);
            if !(after.is_empty() || after.starts_with(';')) {
                return invalid("a chunk size followed by something else");
            }
            if self.reading == Reading::Strict
                && line.len() != digits
                && !line[digits..].starts_with(b";")
            {
                return invalid("white space after a chunk size");
            }
            // §7.1.1: an extension is ignored; only CR and LF in it would move the end of the line.
            let control = after.bytes().any(|b| (b < b' ' && b != b'\t') || b == 0x7f);
            if control && self.reading == Reading::Strict {
                return invalid("a control character in a chunk extension");
            }
            if size == 0 {
                return Ok((body, self.fields(false)?));
            }
            body.extend_from_slice(self.take(size)?);
            match self.bytes[self.at..] {
                [b'\r', b'\n', ..] => self.at += 2,
                [] | [b'\r'] => return Err(Stop::Incomplete),
                _ => return invalid("a chunk that does not end where its size says"),
            }
        }
    }
}

fn read_request(bytes: &[u8], reading: Reading) -> Read<(Request, usize)> {
    let (mut request, head) = read_request_head(bytes, reading)?;
    let mut cursor = Cursor { bytes, at: head, reading };
    match framing(&request.fields, reading)? {
        Framing::Chunked { with_length } => {
            request.last = with_length || request.minor == 0;
            if request.last && reading == Reading::Strict {
                return invalid("Transfer-Encoding with Content-Length or in HTTP/1.0");
            }
            (request.body, request.trailers) = cursor.chunked()?;
        }
        Framing::Length(length) => request.body = cursor.take(length)?.to_vec(),
        Framing::None => {}
        Framing::NotChunked => return invalid("a last transfer coding other than chunked"),
    }
    Ok((request, cursor.at))
}

fn read_request_head(bytes: &[u8], reading: Reading) -> Read<(Request, usize)> {
    let mut cursor = Cursor { bytes, at: 0, reading };
    let mut start = cursor.line()?;
    // §2.2: empty lines before a request line may be ignored.
    while start.is_empty() && reading == Reading::Tolerant {
        start = cursor.line()?;
    }
    let words: Vec<&[u8]> = match reading {
        Reading::Strict => start.split(|&b| b == b' ').collect(),
        Reading::Tolerant => start
            .split(|b| matches!(b, b' ' | b'\t' | 0x0b | 0x0c | b'\r'))
            .filter(|w| !w.is_empty())
            .collect(),
    };
    let [method, target, version] = words[..] else {
        return invalid("a request line not of three words");
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return invalid("a method that is no token");
    }
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        // RFC 9110 §2.5: a higher minor version is read as the highest known one.
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] if reading == Reading::Tolerant => {
            1
        }
        _ => return invalid("a version that is not HTTP/1"),
    };
    if target.is_empty() || target.iter().any(|b| !(0x21..0x7f).contains(b)) {
        return invalid("a target with characters no URI has");
    }
    let (method, target) = (latin(method), latin(target));
    let fields = cursor.fields(true)?;
    let authority = match absolute(&target) {
        Some(rest) => rest.split(['/', '?']).next().unwrap_or_default(),
        None if target.starts_with('/') || (target == "*" && method == "OPTIONS") => "",
        None if method == "CONNECT" => &target,
        None => return invalid("a target in none of the four forms"),
    };
    let hosts: Vec<&str> = fields.all("host").collect();
    match hosts[..] {
        [] if minor == 0 => {}
        [host] if is_host(host) && is_host(authority) => {}
        _ => return invalid("not exactly one valid Host"),
    }
    let request = Request {
        method,
        target,
        minor,
        fields,
        body: Vec::new(),
        trailers: Fields::default(),
        last: false,
    };
    Ok((request, cursor.at))
}

fn read_response(bytes: &[u8], method: &str) -> Read<(Response, usize)> {
    let (mut response, head) = read_response_head(bytes)?;
    if matches!(response.status, 100..200 | 204 | 304) || method == "HEAD" {
        return Ok((response, head));
    }
    let mut cursor = Cursor { bytes, at: head, reading: Reading::Strict };
    match framing(&response.fields, Reading::Strict)? {
        Framing::Chunked { .. } if response.minor == 0 => {
            return invalid("Transfer-Encoding in HTTP/1.0");
        }
        Framing::Chunked { .. } => (response.body, response.trailers) = cursor.chunked()?,
        Framing::Length(length) => response.body = cursor.take(length)?.to_vec(),
        Framing::None | Framing::NotChunked => {
            response.until_close = true;
            response.body = bytes[head..].to_vec();
            cursor.at = bytes.len();
        }
    }
    Ok((response, cursor.at))
}

fn read_response_head(bytes: &[u8]) -> Read<(Response, usize)> {
    let mut cursor = Cursor { bytes, at: 0, reading: Reading::Strict };
    let start = latin(&cursor.line()?);
    let minor = match start.get(..9) {
        Some("HTTP/1.1 ") => 1,
        Some("HTTP/1.0 ") => 0,
        _ => return invalid("a version that is not HTTP/1"),
    };
    let code = start.get(9..12).filter(|c| c.bytes().all(|b| b.is_ascii_digit()));
    let (Some(code), Some(' ')) = (code, start.chars().nth(12)) else {
        return invalid("no status code between spaces");
    };
    let status = code.parse().unwrap_or_default();
    let fields = cursor.fields(true)?;
    let response = Response {
        status,
        minor,
        fields,
        body: Vec::new(),
        trailers: Fields::default(),
        until_close: false,
    };
    Ok((response, cursor.at))
}

enum Framing {
    None,
    Length(u64),
    Chunked { with_length: bool },
    NotChunked,
}

/// RFC 9112 §6.3.
fn framing(fields: &Fields, reading: Reading) -> Read<Framing> {
    let codings: Vec<String> = fields
        .all("transfer-encoding")
        .flat_map(|v| v.split(','))
        .map(|c| c.trim().to_ascii_lowercase())
        .filter(|c| !c.is_empty())
        .collect();
    let lengths: Vec<&str> =
        fields.all("content-length").flat_map(|v| v.split(',')).map(str::trim).collect();
    if fields.all("transfer-encoding").next().is_some() {
        if reading == Reading::Strict && !lengths.is_empty() {
            return invalid("both Transfer-Encoding and Content-Length");
        }
        if codings.iter().filter(|c| *c == "chunked").count() > 1 {
            return invalid("chunked more than once");
        }
        let chunked = codings.last().is_some_and(|c| c == "chunked");
        if codings
            .iter()
            .any(|c| !matches!(c.as_str(), "chunked" | "gzip" | "deflate" | "compress"))
        {
            return invalid("an unknown transfer coding");
        }
        let with_length = !lengths.is_empty();
        return Ok(if chunked { Framing::Chunked { with_length } } else { Framing::NotChunked });
    }
    let Some(first) = lengths.first() else { return Ok(Framing::None) };
    if lengths.len() > 1 && reading == Reading::Strict {
        return invalid("several Content-Lengths");
    }
    if lengths.iter().any(|l| l != first) {
        return invalid("unequal Content-Lengths");
    }
    if first.is_empty() || !first.bytes().all(|b| b.is_ascii_digit()) {
        return invalid("a Content-Length that is no number");
    }
    first.parse().map(Framing::Length).or_else(|_| invalid("a Content-Length beyond 64 bits"))
}

/// What follows `scheme://`, if the target begins so.
fn absolute(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    let letter = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    let rest = letter.then_some(rest)?;
    scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)).then_some(rest)
}

fn is_host(host: &str) -> bool {
    host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(&b))
}

fn value_text(raw: &[u8]) -> Read<String> {
    if raw.contains(&0) {
        return invalid("NUL in a field value");
    }
    Ok(latin(raw).trim_matches([' ', '\t']).to_owned())
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::{Parsed, Reading, request, response};

    #[test]
    fn readings_differ_only_where_the_rfc_permits_a_repair() {
        let cases: [(&str, &str, &str); 16] = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "ok 0", "ok 0"),
            ("GET / HTTP/1.1\nHost: a\n\n", "bad", "ok 0"),
            ("GET  /\tHTTP/1.1\r\nHost: a\r\n\r\n", "bad", "ok 0"),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "bad", "ok 0"),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "bad", "bad"),
            ("GET / HTTP/1.1\r\n\r\n", "bad", "bad"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "bad", "bad"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", "more", "more"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nab", "bad", "ok 2"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 3\r\n\r\nab", "bad", "bad"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nab", "bad", "bad"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=\"y\"\r\nab\r\n0\r\n\r\n",
                "ok 2",
                "ok 2",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
                "bad",
                "bad",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
                "bad",
                "bad",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
                "bad",
                "bad",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
                "bad",
                "ok 2",
            ),
        ];
        for (bytes, strict, tolerant) in cases {
            for (reading, expected) in [(Reading::Strict, strict), (Reading::Tolerant, tolerant)] {
                let outcome = match request(bytes.as_bytes(), reading) {
                    Parsed::Message(message, length) => {
                        assert_eq!(length, bytes.len(), "{bytes:?}");
                        format!("ok {}", message.body.len())
                    }
                    Parsed::Incomplete => "more".to_owned(),
                    Parsed::Invalid(_) => "bad".to_owned(),
                };
                assert_eq!(outcome, expected, "{reading:?} {bytes:?}");
            }
        }
    }

    #[test]
    fn a_response_ends_where_its_framing_says() {
        let length = |bytes: &str, method| match response(bytes.as_bytes(), method) {
            Parsed::Message(message, _) => Some((message.body.len(), message.until_close)),
            _ => None,
        };
        assert_eq!(
            length("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabX", "GET"),
            Some((2, false))
        );
        assert_eq!(
            length("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nX", "HEAD"),
            Some((0, false))
        );
        assert_eq!(length("HTTP/1.1 204 No\r\n\r\nX", "GET"), Some((0, false)));
        assert_eq!(length("HTTP/1.1 200 OK\r\n\r\nabc", "GET"), Some((3, true)));
        assert_eq!(length("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na", "GET"), None);
        assert_eq!(
            length("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n", "GET"),
            None
        );
    }
}
