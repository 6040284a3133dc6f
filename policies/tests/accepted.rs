//! What the documents of `testdata/good` become.

use std::path::Path;

use towpath_policies::{check, folder};

#[test]
fn print() {
    let files = folder::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/good"))).unwrap();
    let checked = check(files, "v1".to_owned());
    println!("{}", checked.report);
    println!("{:#?}", checked.mesh);
}
