use proptest::prelude::*;

use super::*;

fn ends(client: &str, server: &str) -> Option<Ends> {
    Some(Ends { client: client.parse().unwrap(), server: server.parse().unwrap() })
}

/// Version 2 with this command, family and body.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [V2, &[command, family][..], &length, body].concat()
}

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

const V4: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 9, 0x30, 0x39, 0x01, 0xbb];

#[test]
fn lines_of_version_1() {
    let four = ends("192.0.2.1:12345", "10.0.0.9:443");
    let six = ends("[2001:db8::1]:65535", "[::1]:0");
    for (line, expected) in [
        ("PROXY TCP4 192.0.2.1 10.0.0.9 12345 443\r\n", four),
        ("PROXY TCP6 2001:db8::1 ::1 65535 0\r\n", six),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:10.0.0.9 12345 443\r\n", four),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ff:ff whatever 1\r\n", None),
    ] {
        let bytes = format!("{line}GET / HTTP/1.1\r\n");
        assert_eq!(read(bytes.as_bytes()), Opening::Header(line.len(), expected), "{line}");
        for cut in 0..line.len() {
            assert_eq!(read(&line.as_bytes()[..cut]), Opening::Incomplete, "{cut} of {line}");
        }
    }
}

#[test]
fn what_is_no_header_is_told_at_the_first_byte_that_differs() {
    for bytes in [
        &b"G"[..],
        b"PR0",
        b"PROXYTCP4",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01",
        b"\r\n\r\n\r",
        b"proxy ",
    ] {
        assert_eq!(read(bytes), Opening::Absent, "{bytes:?}");
    }
    assert_eq!(read(b""), Opening::Incomplete);
    assert_eq!(read(b"PR"), Opening::Incomplete);
    assert_eq!(read(b"\r\n\r\n"), Opening::Incomplete);
}

#[test]
fn lines_that_could_be_read_in_two_ways_are_refused() {
    for line in [
        "PROXY TCP4 192.0.2.1 10.0.0.9 12345 443\n",
        "PROXY TCP4  192.0.2.1 10.0.0.9 12345 443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.9 12345 443 \r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.9 12345 443 1\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.9 12345\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.9 +12345 443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.9 012345 443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.9 65536 443\r\n",
        "PROXY TCP4 192.0.2.01 10.0.0.9 12345 443\r\n",
        "PROXY TCP4 ::1 ::1 1 1\r\n",
        "PROXY TCP6 192.0.2.1 10.0.0.9 12345 443\r\n",
        "PROXY UDP4 192.0.2.1 10.0.0.9 12345 443\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \r\n",
        "PROXY TCP4 \u{e9} 10.0.0.9 12345 443\r\n",
    ] {
        assert!(matches!(read(line.as_bytes()), Opening::Malformed(_)), "{line:?}");
    }
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
    assert_eq!(read(&endless.as_bytes()[..106]), Opening::Incomplete);
    assert!(matches!(read(&endless.as_bytes()[..107]), Opening::Malformed(_)));
}

#[test]
fn version_2_tells_tcp_and_lets_fields_be() {
    let four = ends("192.0.2.1:12345", "10.0.0.9:443");
    let six: Vec<u8> = [
        &"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets()[..],
        &Ipv6Addr::LOCALHOST.octets(),
        &[0, 80, 0, 81],
    ]
    .concat();
    let with_fields = [&V4[..], &field(1, b"h2"), &field(0xea, &[7; 100]), &field(4, &[])].concat();
    for (bytes, expected) in [
        (v2(0x21, 0x11, &V4), four),
        (v2(0x21, 0x11, &with_fields), four),
        (v2(0x21, 0x21, &six), ends("[2001:db8::1]:80", "[::1]:81")),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &V4), None),
        (v2(0x20, 0x11, &[1, 2]), None),
        (v2(0x20, 0x77, &[1, 2, 3]), None),
        // Of a balancer's own connection all is skipped: fields cut off, and a checksum that is wrong.
        (v2(0x20, 0x00, &[1, 0]), None),
        (v2(0x20, 0x11, &[&V4[..], &[1, 0, 5, 1]].concat()), None),
        (v2(0x20, 0x00, &field(3, &[0; 4])), None),
        (v2(0x20, 0x21, &[&[0; 36][..], &field(3, &[0; 3])].concat()), None),
        (v2(0x21, 0x00, &[]), None),
        (v2(0x21, 0x12, &V4), None),
        (v2(0x21, 0x31, &[0; 216]), None),
    ] {
        assert_eq!(read(&bytes), Opening::Header(bytes.len(), expected), "{bytes:?}");
        let more = [&bytes[..], b"more"].concat();
        assert_eq!(read(&more), Opening::Header(bytes.len(), expected));
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Opening::Incomplete, "{cut} of {bytes:?}");
        }
    }
}

#[test]
fn version_2_is_refused_where_it_is_malformed_or_too_long() {
    for bytes in [
        v2(0x11, 0x11, &V4),
        v2(0x22, 0x11, &V4),
        v2(0x21, 0x13, &V4),
        v2(0x21, 0x41, &V4),
        v2(0x21, 0x11, &V4[..11]),
        v2(0x21, 0x21, &V4),
        v2(0x21, 0x11, &[&V4[..], &[1, 0]].concat()),
        v2(0x21, 0x11, &[&V4[..], &[1, 0, 5, 1]].concat()),
        v2(0x21, 0x11, &[&V4[..], &field(3, &[0; 3])].concat()),
        v2(0x21, 0x11, &[0; 4081]),
    ] {
        assert!(matches!(read(&bytes), Opening::Malformed(_)), "{bytes:?}");
    }
    // The length alone tells: nothing of the body is waited for.
    let huge = v2(0x21, 0x11, &[0; 4081]);
    assert!(matches!(read(&huge[..FIXED]), Opening::Malformed(_)));
}

#[test]
fn a_checksum_is_held_against_the_header() {
    // The check value of CRC-32C.
    assert_eq!(crc32c(b"123456789".iter()), 0xE306_9283);
    let mut bytes = v2(0x21, 0x11, &[&V4[..], &field(3, &[0; 4]), &field(4, &[0; 9])].concat());
    let at = FIXED + 12 + 3;
    let sum = crc32c(bytes.iter()).to_be_bytes();
    bytes[at..at + 4].copy_from_slice(&sum);
    assert!(matches!(read(&bytes), Opening::Header(_, Some(_))));
    for flipped in [13, FIXED, at, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[flipped] ^= 1;
        assert!(!matches!(read(&damaged), Opening::Header(_, Some(_))), "byte {flipped}");
    }
    let twice = v2(0x21, 0x11, &[&V4[..], &field(3, &[0; 4]), &field(3, &[0; 4])].concat());
    assert!(matches!(read(&twice), Opening::Malformed(_)));
}

#[test]
fn ends_of_two_families_travel_as_ipv6() {
    let mixed = ends("192.0.2.1:1", "[2001:db8::1]:2");
    assert_eq!(header(ProxyVersion::V1, mixed), b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n");
    assert_eq!(header(ProxyVersion::V1, None), b"PROXY UNKNOWN\r\n");
    assert_eq!(header(ProxyVersion::V2, None), v2(0x20, 0, &[]));
    assert_eq!(
        header(ProxyVersion::V2, ends("192.0.2.1:12345", "10.0.0.9:443")),
        v2(0x21, 0x11, &V4)
    );
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| IpAddr::from(Ipv4Addr::from(octets))),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::from(Ipv6Addr::from(octets))),
    ];
    (ip, any::<u16>()).prop_map(|(ip, port)| socket(ip, port))
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(client in address(), server in address(), old: bool) {
        let version = if old { ProxyVersion::V1 } else { ProxyVersion::V2 };
        let ends = Ends { client, server };
        let bytes = header(version, Some(ends));
        prop_assert!(bytes.len() <= MAX_LINE);
        prop_assert_eq!(read(&bytes), Opening::Header(bytes.len(), Some(ends)));
    }

    /// Whatever comes, cut however: no panic, no claim beyond what is there, and more bytes change no verdict.
    #[test]
    fn no_bytes_confuse_the_reader(
        kind in 0..3usize,
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cut in 0..300usize,
    ) {
        let front: &[u8] = match kind { 0 => b"", 1 => V1, _ => V2 };
        bytes.splice(0..0, front.iter().copied());
        if kind == 2 && bytes.len() >= FIXED {
            bytes[12] = 0x20 | (bytes[12] & 1);
            bytes[14] = 0;
        }
        let part = &bytes[..cut.min(bytes.len())];
        match read(part) {
            Opening::Incomplete => {}
            Opening::Header(length, ends) => {
                prop_assert!(length <= part.len());
                prop_assert_eq!(read(&bytes), Opening::Header(length, ends));
            }
            verdict => prop_assert_eq!(read(&bytes), verdict),
        }
    }
}
