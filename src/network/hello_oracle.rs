//! What any bytes must do to the reader of first messages: for its tests and for fuzzing.

use super::hello::{Hello, HelloReader};

/// Returns what is known after all bytes at once.
fn whole(bytes: &[u8]) -> Hello {
    HelloReader::default().push(bytes)
}

/// Checks that a reader comes to the same result however the bytes arrive, keeps to it, and panics at none.
/// The first byte of `script` says in which pieces the others arrive.
pub(crate) fn check(script: &[u8]) {
    let Some((pieces, bytes)) = script.split_first() else { return };
    let expected = whole(bytes);
    let mut reader = HelloReader::default();
    let mut known = Hello::Incomplete;
    for piece in bytes.chunks(usize::from(*pieces).max(1)) {
        let next = reader.push(piece);
        assert!(known == Hello::Incomplete || known == next, "{known:?} became {next:?}");
        known = next;
    }
    assert_eq!(known, expected);
    // A name that arrives in a message of ours is found; any other bytes before it are no message.
    let name = name_of(bytes);
    for size in [1, usize::from(*pieces).max(1), 16 << 10] {
        assert_eq!(whole(&message(&name, size)), Hello::Name(name.clone()));
        let incomplete = &message(&name, size)[..usize::from(*pieces) % 40];
        assert_eq!(whole(incomplete), Hello::Incomplete, "{incomplete:?}");
    }
}

/// Returns a name made of these bytes.
fn name_of(bytes: &[u8]) -> String {
    let label = bytes.iter().take(60).map(|byte| char::from(b'a' + byte % 26));
    format!("x{}.example", label.collect::<String>())
}

/// Returns the first message of a TLS client that wants the server `name`, in records of `size` bytes.
pub(super) fn message(name: &str, size: usize) -> Vec<u8> {
    let with_length = |bytes: &[u8], width: usize| {
        let length = (bytes.len() as u32).to_be_bytes();
        [&length[4 - width..], bytes].concat()
    };
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_length(body, 2)].concat();
    let server_name = with_length(&[&[0][..], &with_length(name.as_bytes(), 2)].concat(), 2);
    let extensions = [
        extension(0, &server_name),
        // Groups, signatures, versions and an empty key share, which a client of TLS 1.3 must have.
        extension(10, &with_length(&[0, 0x1d], 2)),
        extension(13, &with_length(&[4, 3], 2)),
        extension(43, &with_length(&[3, 4], 1)),
        extension(51, &with_length(&[], 2)),
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &with_length(&[], 1),
        &with_length(&[0x13, 1], 2),
        &with_length(&[0], 1),
        &with_length(&extensions, 2),
    ]
    .concat();
    let handshake = [&[1][..], &with_length(&body, 3)].concat();
    handshake.chunks(size).flat_map(|part| [&[22, 3, 1][..], &with_length(part, 2)].concat()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_one_result(script in prop::collection::vec(any::<u8>(), 0..500)) {
            check(&script);
        }

        #[test]
        fn a_message_with_any_change_gives_one_result(pieces in any::<u8>(), at in 0..200_usize, byte in any::<u8>()) {
            let mut script = message("a.example", 100);
            let at = at % script.len();
            script[at] = byte;
            script.insert(0, pieces);
            check(&script);
        }
    }

    #[test]
    fn other_protocols_are_told_apart() {
        assert_eq!(whole(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"), Hello::NotTls);
        assert_eq!(whole(b"SSH-2.0-x\r\n"), Hello::NotTls);
        assert_eq!(whole(&message("A.Example", 500)), Hello::Name("a.example".into()));
        assert_eq!(whole(&[]), Hello::Incomplete);
    }
}
