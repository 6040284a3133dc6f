//! Writes small databases in MaxMind's format, for tests
//! (<https://maxmind.github.io/MaxMind-DB/>, version 2.0).

use std::net::IpAddr;

/// A value of a record.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// By key.
    Map(Vec<(&'static str, Value)>),
    /// In order.
    List(Vec<Value>),
    /// UTF-8.
    Text(&'static str),
    /// Of 64 bits.
    Double(f64),
    /// Of 16 bits.
    Uint16(u16),
    /// Of 32 bits.
    Uint32(u32),
    /// Of 64 bits.
    Uint64(u64),
}

/// What a branch of the tree leads to.
#[derive(Clone, Copy)]
enum Branch {
    Nothing,
    Node(usize),
    /// At this offset of the data.
    Data(usize),
}

/// A record as those of cities have it.
pub(crate) fn city(latitude: f64, longitude: f64) -> Value {
    let name = Value::Map(vec![("names", Value::Map(vec![("en", Value::Text("Somewhere"))]))]);
    let point = [("latitude", Value::Double(latitude)), ("longitude", Value::Double(longitude))];
    let accuracy = ("accuracy_radius", Value::Uint16(20));
    let location = [[accuracy].as_slice(), &point].concat();
    Value::Map(vec![("city", name), ("location", Value::Map(location))])
}

/// A database of these networks, none of which lies within another.
pub(crate) fn database(version: u8, networks: &[(IpAddr, u8, Value)]) -> Vec<u8> {
    let mut nodes = vec![[Branch::Nothing; 2]];
    let mut data = Vec::new();
    for (address, length, value) in networks {
        let (bits, first) = match (address, version) {
            (IpAddr::V4(v4), 4) => (u128::from(v4.to_bits()) << 96, 0),
            (IpAddr::V4(v4), _) => (u128::from(v4.to_bits()), 96),
            (IpAddr::V6(v6), _) => (v6.to_bits(), 0),
        };
        let length = first + usize::from(*length);
        let mut node = 0;
        for depth in 0..length {
            let side = usize::from(bits >> (127 - depth) & 1 == 1);
            if depth + 1 == length {
                nodes[node][side] = Branch::Data(data.len());
                break;
            }
            node = match nodes[node][side] {
                Branch::Node(next) => next,
                _ => {
                    nodes.push([Branch::Nothing; 2]);
                    nodes[node][side] = Branch::Node(nodes.len() - 1);
                    nodes.len() - 1
                }
            };
        }
        write(value, &mut data);
    }
    let count = nodes.len();
    let record = |branch| match branch {
        Branch::Nothing => count,
        Branch::Node(node) => node,
        Branch::Data(offset) => count + 16 + offset,
    };
    let records = nodes.into_iter().flatten().map(record);
    let mut file: Vec<u8> =
        records.flat_map(|record| u32::try_from(record).unwrap_or(0).to_be_bytes()).collect();
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    let metadata = Value::Map(vec![
        ("binary_format_major_version", Value::Uint16(2)),
        ("binary_format_minor_version", Value::Uint16(0)),
        ("build_epoch", Value::Uint64(1_700_000_000)),
        ("database_type", Value::Text("Test-City")),
        ("description", Value::Map(vec![("en", Value::Text("made for a test"))])),
        ("ip_version", Value::Uint16(version.into())),
        ("languages", Value::List(vec![Value::Text("en")])),
        ("node_count", Value::Uint32(u32::try_from(count).unwrap_or(0))),
        ("record_size", Value::Uint16(32)),
    ]);
    write(&metadata, &mut file);
    file
}

fn write(value: &Value, out: &mut Vec<u8>) {
    let number = |number: u64| {
        let bytes = number.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes[zeros..].to_vec()
    };
    let (kind, bytes) = match value {
        Value::Map(entries) => {
            head(7, entries.len(), out);
            for (key, value) in entries {
                write(&Value::Text(key), out);
                write(value, out);
            }
            return;
        }
        Value::List(items) => {
            head(11, items.len(), out);
            items.iter().for_each(|item| write(item, out));
            return;
        }
        Value::Text(text) => (2, text.as_bytes().to_vec()),
        Value::Double(double) => (3, double.to_be_bytes().to_vec()),
        Value::Uint16(n) => (5, number((*n).into())),
        Value::Uint32(n) => (6, number((*n).into())),
        Value::Uint64(n) => (9, number(*n)),
    };
    head(kind, bytes.len(), out);
    out.extend(bytes);
}

/// A type and a size; those above 7 are written after it.
fn head(kind: u8, size: usize, out: &mut Vec<u8>) {
    let size = u8::try_from(size).unwrap_or(u8::MAX);
    let (short, long) = if size < 29 { (size, None) } else { (29, Some(size - 29)) };
    if kind <= 7 {
        out.push(kind << 5 | short);
    } else {
        out.extend([short, kind - 7]);
    }
    out.extend(long);
}
