//! The step's `/etc/hosts`: the image's file, completed with the host name and the names that every machine
//! has.

use std::fmt::Write as _;

/// The maximum size of an image's file that is kept, in bytes. A larger file is replaced.
pub(crate) const MAX_BYTES: u64 = 1 << 18;

/// The entries that container engines write at the start of the file.
const USUAL: [(&str, &[&str]); 6] = [
    ("127.0.0.1", &["localhost"]),
    ("::1", &["localhost", "ip6-localhost", "ip6-loopback"]),
    ("fe00::0", &["ip6-localnet"]),
    ("ff00::0", &["ip6-mcastprefix"]),
    ("ff02::1", &["ip6-allnodes"]),
    ("ff02::2", &["ip6-allrouters"]),
];

/// The address of the host name. It is on the loopback device of every network, and differs from that of
/// `localhost`, because otherwise `hostname -f` would resolve to `localhost`.
const OWN_ADDRESS: &str = "127.0.1.1";

/// Returns `own`, the image's file, followed by lines for the names that it lacks, and preceded by a line for
/// `own_names`, because the first line that has a name counts.
pub(crate) fn complete(own: &[u8], hostname: &str, own_names: &[String]) -> Vec<u8> {
    let known: Vec<&[u8]> = own.split(|byte| *byte == b'\n').flat_map(names).collect();
    let lacks = |name: &&str| !known.iter().any(|known| known.eq_ignore_ascii_case(name.as_bytes()));
    let mut added = String::new();
    let mut add = |address: &str, names: &[&str]| {
        let lacking: Vec<&str> = names.iter().copied().filter(lacks).collect();
        if !lacking.is_empty() {
            let _ = writeln!(added, "{address}\t{}", lacking.join(" "));
        }
    };
    for (address, names) in USUAL {
        add(address, names);
    }
    // "(none)" is the name of a machine whose name was never set.
    if is_name(hostname) {
        match hostname.split_once('.') {
            Some((short, _)) if !short.is_empty() => add(OWN_ADDRESS, &[hostname, short]),
            _ => add(OWN_ADDRESS, &[hostname]),
        }
    }
    let mut file = match own_names {
        [] => Vec::new(),
        names => format!("127.0.0.1\t{}\n", names.join(" ")).into_bytes(),
    };
    file.extend_from_slice(own);
    if file.last().is_some_and(|last| *last != b'\n') {
        file.push(b'\n');
    }
    file.extend_from_slice(added.as_bytes());
    file
}

/// Returns the names on a line, without its address and its comment.
fn names(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).skip(1)
}

fn is_name(hostname: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !hostname.is_empty() && hostname.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(own: &str, hostname: &str) -> String {
        String::from_utf8(complete(own.as_bytes(), hostname, &[])).unwrap()
    }

    #[test]
    fn an_image_without_names_gets_those_of_a_container_and_its_own() {
        let file = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                    ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.1.1\tbox\n";
        assert_eq!(completed("", "box"), file);
        assert_eq!(completed(file, "box"), file, "completed twice");
    }

    #[test]
    fn names_of_its_own_come_before_those_of_the_image() {
        let names = ["db".to_owned(), "cache".to_owned()];
        let file = String::from_utf8(complete(b"10.0.0.9 db\n127.0.0.1 localhost", "box", &names)).unwrap();
        assert!(file.starts_with("127.0.0.1\tdb cache\n10.0.0.9 db\n127.0.0.1 localhost\n"), "{file}");
    }

    #[test]
    fn names_that_are_there_stay_as_they_are() {
        let own = "10.0.0.7 Box.example.org box # and\tip6-allnodes\n127.0.0.1 localhost ip6-localhost ip6-loopback";
        let file = completed(own, "box.example.org");
        assert!(file.starts_with(&format!("{own}\n")), "{file}");
        assert!(!file.contains("127.0.1.1") && !file.contains("::1\tlocalhost"), "{file}");
        assert!(file.contains("\nff02::1\tip6-allnodes\n"), "a comment names nothing: {file}");
    }

    #[test]
    fn a_full_name_has_its_short_one_beside_it() {
        assert!(completed("", "box.example.org").ends_with("127.0.1.1\tbox.example.org box\n"));
        assert!(!completed("", "(none)").contains("127.0.1.1"));
        assert!(!completed("", "").contains("127.0.1.1"));
        assert!(completed("\u{0}\n#\n1.1.1.1\n", "a").ends_with("127.0.1.1\ta\n"));
    }
}
