use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

fn names() -> Vec<String> {
    vec!["towpath-control-plane.towpath.svc".to_owned()]
}

fn write(folder: &Path, certificate: &str, key: &str) {
    fs::write(folder.join(CERTIFICATE), certificate).unwrap();
    fs::write(folder.join(KEY), key).unwrap();
}

#[test]
fn an_authority_is_made_once_and_its_key_is_its_owners() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("a/b");
    let now = SystemTime::now();
    ensure_authority(&place, now).unwrap();
    let read = || fs::read_to_string(place.join(CERTIFICATE)).unwrap();
    let made = read();
    assert!(made.starts_with("-----BEGIN CERTIFICATE-----"));
    let mode = fs::metadata(place.join(KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    ensure_authority(&place, now).unwrap();
    assert_eq!(read(), made);
    // A start that broke off between the two files is made up for, and a key that is there stays.
    let key = fs::read_to_string(place.join(KEY)).unwrap();
    fs::remove_file(place.join(CERTIFICATE)).unwrap();
    ensure_authority(&place, now).unwrap();
    assert!(read().starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(fs::read_to_string(place.join(KEY)).unwrap(), key);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 2, "nothing unfinished is left");
    assert!(Keeper::new(place, Origin::Authority(names())).look(now).unwrap().is_some());
}

#[test]
fn a_key_that_cannot_be_used_is_told_and_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(KEY), "somebody's").unwrap();
    let error = ensure_authority(folder.path(), SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains(KEY), "{error}");
    assert_eq!(fs::read_to_string(folder.path().join(KEY)).unwrap(), "somebody's");
    assert!(!folder.path().join(CERTIFICATE).exists());
}

#[test]
fn a_certificate_is_renewed_long_before_its_end_and_not_sooner() {
    let folder = tempfile::tempdir().unwrap();
    let begin = SystemTime::now();
    ensure_authority(folder.path(), begin).unwrap();
    let mut keeper = Keeper::new(folder.path().to_owned(), Origin::Authority(names()));
    assert!(keeper.look(begin).unwrap().is_some());
    assert!(keeper.look(begin + RENEW - Duration::from_secs(1)).unwrap().is_none());
    assert!(keeper.look(begin + RENEW).unwrap().is_some());
    assert!(keeper.look(begin + RENEW).unwrap().is_none());
    assert!(keeper.look(begin + 2 * RENEW).unwrap().is_some());
    assert!(RENEW < LIFE);
}

#[test]
fn another_authority_is_taken_up_and_a_broken_one_told_once() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SystemTime::now();
    ensure_authority(folder.path(), now).unwrap();
    ensure_authority(other.path(), now).unwrap();
    let mut keeper = Keeper::new(folder.path().to_owned(), Origin::Authority(names()));
    keeper.look(now).unwrap().unwrap();
    write(folder.path(), "nonsense", "nonsense");
    let error = keeper.look(now).unwrap_err().to_string();
    assert!(error.contains(KEY) && error.contains(folder.path().to_str().unwrap()), "{error}");
    assert!(keeper.look(now).unwrap().is_none(), "the same files are not tried again");
    for name in [CERTIFICATE, KEY] {
        fs::copy(other.path().join(name), folder.path().join(name)).unwrap();
    }
    assert!(keeper.look(now).unwrap().is_some());
    fs::remove_file(folder.path().join(KEY)).unwrap();
    assert!(matches!(keeper.look(now), Err(CertificateError::Io { .. })));
}

#[test]
fn what_somebody_else_renews_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = Keeper::new(folder.path().to_owned(), Origin::Given);
    let now = SystemTime::now();
    assert!(keeper.look(now).is_err(), "not there");
    let pair = || {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names()).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (one, other) = (pair(), pair());
    write(folder.path(), &one.0, &one.1);
    assert!(keeper.look(now).unwrap().is_some());
    assert!(keeper.look(now + 2 * RENEW).unwrap().is_none(), "its age is not ours to judge");
    // Half-way through a change by hand the two do not fit.
    write(folder.path(), &other.0, &one.1);
    assert!(keeper.look(now).is_err());
    write(folder.path(), &other.0, &other.1);
    assert!(keeper.look(now).unwrap().is_some());
}
