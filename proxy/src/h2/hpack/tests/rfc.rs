//! The examples of RFC 7541 Appendix C.

use super::{super::Decoder, lines};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

#[test]
fn single_fields_c2() {
    for (hex, expected, entries) in [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key: custom-header", 1),
        ("040c2f73616d706c652f70617468", ":path: /sample/path", 0),
        ("100870617373776f726406736563726574", "!password: secret", 0),
        ("82", ":method: GET", 0),
    ] {
        let mut decoder = Decoder::new(4096);
        assert_eq!(lines(&mut decoder, &bytes(hex)), [expected]);
        assert_eq!(decoder.decode(&[0xbe], 99, drop).is_ok(), entries == 1);
    }
}

#[test]
fn requests_plain_c3_and_coded_c4() {
    let plain = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ];
    let coded = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    for [first, second, third] in [plain, coded] {
        let decoder = &mut Decoder::new(4096);
        assert_eq!(
            lines(decoder, &bytes(first)),
            [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"]
        );
        assert_eq!(
            lines(decoder, &bytes(second)),
            [
                ":method: GET",
                ":scheme: http",
                ":path: /",
                ":authority: www.example.com",
                "cache-control: no-cache",
            ]
        );
        assert_eq!(
            lines(decoder, &bytes(third)),
            [
                ":method: GET",
                ":scheme: https",
                ":path: /index.html",
                ":authority: www.example.com",
                "custom-key: custom-value",
            ]
        );
        // The table, and its size: 164.
        let table =
            ["custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"];
        assert_eq!(lines(decoder, &bytes("3f8501 bebfc0")), table);
        assert_eq!(lines(decoder, &bytes("3f8401 bebf")), table[..2]);
        assert!(decoder.decode(&bytes("c0"), 99, drop).is_err());
    }
}

#[test]
fn responses_with_eviction_plain_c5_and_coded_c6() {
    let plain = [
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54
         6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f
         3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076
         657273696f6e3d31",
    ];
    let coded = [
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f
         0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335df
         dfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ];
    let location = "location: https://www.example.com";
    let date = "date: Mon, 21 Oct 2013 20:13:21 GMT";
    for blocks in [plain, coded] {
        for (mut decoder, start) in [
            (Decoder::new(256), &[][..]),
            // The same size, chosen by the peer.
            (Decoder::new(4096), &[0x3f, 0xe1, 0x01]),
        ] {
            let [first, second, third] = blocks.map(bytes);
            assert_eq!(
                lines(&mut decoder, &[start, &first].concat()),
                [":status: 302", "cache-control: private", date, location]
            );
            assert_eq!(
                lines(&mut decoder, &second),
                [":status: 307", "cache-control: private", date, location]
            );
            let later = "date: Mon, 21 Oct 2013 20:13:22 GMT";
            let cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
            assert_eq!(
                lines(&mut decoder, &third),
                [
                    ":status: 200",
                    "cache-control: private",
                    later,
                    location,
                    "content-encoding: gzip",
                    cookie,
                ]
            );
            let table = [cookie, "content-encoding: gzip", later];
            assert_eq!(lines(&mut decoder, &bytes("bebfc0")), table);
            assert!(decoder.decode(&bytes("c1"), 99, drop).is_err());
        }
    }
}
