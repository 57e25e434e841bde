//! The destinations that a step with a network of its own may reach.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

/// One entry of a step's list of destinations: a name, the names below a domain, an address or a network, and
/// optionally a port. Examples: `crates.io:443`, `*.debian.org`, `10.0.0.0/8`, `[2001:db8::1]:53`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRule {
    host: EgressHost,
    /// `None` is every port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum EgressHost {
    /// A name in lower case.
    Name(Arc<str>),
    /// Every name that ends with this text, which begins with a dot.
    Below(Arc<str>),
    /// A network: its address, and the number of bits that all of its addresses share.
    Network(IpAddr, u8),
}

impl EgressRule {
    /// Returns whether the step may reach a name, in lower case, at a port. Without a port, returns whether
    /// it may ask for the address of the name.
    #[must_use]
    pub fn allows_name(&self, name: &str, port: Option<u16>) -> bool {
        let is_it = match &self.host {
            EgressHost::Name(own) => **own == *name,
            EgressHost::Below(end) => name.len() > end.len() && name.ends_with(&**end),
            EgressHost::Network(..) => false,
        };
        is_it && (port.is_none() || self.allows_port(port))
    }

    /// Returns whether the step may reach an address, by whatever name, at a port.
    #[must_use]
    pub fn allows_address(&self, ip: IpAddr, port: u16) -> bool {
        let is_it = match (&self.host, ip.to_canonical()) {
            (EgressHost::Network(IpAddr::V4(own), bits), IpAddr::V4(ip)) => masked_v4(ip, *bits) == own.to_bits(),
            (EgressHost::Network(IpAddr::V6(own), bits), IpAddr::V6(ip)) => masked_v6(ip, *bits) == own.to_bits(),
            _ => false,
        };
        is_it && self.allows_port(Some(port))
    }

    fn allows_port(&self, port: Option<u16>) -> bool {
        self.port.is_none() || self.port == port
    }
}

/// Returns the first `bits` bits of an address; the others are zero.
fn masked_v4(ip: Ipv4Addr, bits: u8) -> u32 {
    ip.to_bits() & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

/// Returns the first `bits` bits of an address; the others are zero.
fn masked_v6(ip: Ipv6Addr, bits: u8) -> u128 {
    ip.to_bits() & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

impl FromStr for EgressRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err("it is a URL: write its host, and optionally a port, such as `crates.io:443`".into());
        }
        let (host, port) = split_port(text)?;
        let port = port.map(|port| match port.parse() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(format!("`{port}` is not a port from 1 to 65535")),
        });
        Ok(Self { host: parse_host(host)?, port: port.transpose()? })
    }
}

/// Splits the port off, if there is one.
fn split_port(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("a `]` is missing")?;
        if !host.contains(':') {
            return Err("only IPv6 addresses are written in brackets".into());
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err("after `]` comes `:` and a port, or nothing".into()),
        };
    }
    match text.split_once(':') {
        // Several colons belong to an IPv6 address.
        Some((_, port)) if port.contains(':') => Ok((text, None)),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_host(host: &str) -> Result<EgressHost, String> {
    let (address, bits) = match host.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (host, None),
    };
    if let Ok(ip) = address.parse::<IpAddr>() {
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = match bits.map(str::parse) {
            None => most,
            Some(Ok(bits)) if bits <= most => bits,
            Some(_) => return Err(format!("after `/` comes a number of bits from 0 to {most}")),
        };
        let network = match ip {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(masked_v4(ip, bits))),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(masked_v6(ip, bits))),
        };
        if network != ip {
            return Err(format!("the address has more than {bits} bits: did you mean `{network}/{bits}`?"));
        }
        return Ok(EgressHost::Network(network, bits));
    }
    if bits.is_some() {
        return Err(format!("`{address}` is not an address"));
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let (name, is_below) = match host.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (&*host, false),
    };
    check_name(name)?;
    Ok(match is_below {
        true => EgressHost::Below(format!(".{name}").into()),
        false => EgressHost::Name(name.into()),
    })
}

fn check_name(name: &str) -> Result<(), String> {
    if name == "*" {
        return Err("to allow everything, leave the list out".into());
    }
    if !name.is_ascii() {
        return Err("write the name as it is asked for, in ASCII (`xn--...`)".into());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let is_name = name.len() <= 253 && name.split('.').all(is_label);
    // Otherwise it is a mistyped address.
    let is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if is_name && !is_number {
        return Ok(());
    }
    Err("expected a name such as `crates.io`, names such as `*.debian.org`, an address, or a network such as \
         `10.0.0.0/8`, and optionally a port"
        .into())
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            EgressHost::Name(name) => f.write_str(name)?,
            EgressHost::Below(end) => write!(f, "*{end}")?,
            EgressHost::Network(IpAddr::V6(ip), bits) if self.port.is_some() => write!(f, "[{ip}/{bits}]")?,
            EgressHost::Network(ip, bits) => write!(f, "{ip}/{bits}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> EgressRule {
        text.parse().unwrap()
    }

    #[test]
    fn names_match_as_a_whole_and_domains_match_what_is_below_them() {
        assert!(rule("Crates.IO:443").allows_name("crates.io", Some(443)));
        assert!(rule("crates.io.").allows_name("crates.io", Some(1)));
        for (name, port) in [("crates.io", 80), ("x.crates.io", 443), ("xcrates.io", 443), ("io", 443)] {
            assert!(!rule("crates.io:443").allows_name(name, Some(port)), "{name}:{port}");
        }
        assert!(rule("crates.io:443").allows_name("crates.io", None), "its address may be asked for");
        for name in ["deb.debian.org", "a.b.debian.org"] {
            assert!(rule("*.debian.org").allows_name(name, Some(80)));
        }
        for name in ["debian.org", "xdebian.org", ".debian.org", "debian.org.example"] {
            assert!(!rule("*.debian.org").allows_name(name, Some(80)), "{name}");
        }
        assert!(!rule("*.debian.org").allows_address("192.0.2.1".parse().unwrap(), 80));
    }

    #[test]
    fn networks_match_by_their_bits() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1:9", "11.0.0.1:9"),
            ("192.0.2.1", "192.0.2.1:9", "192.0.2.2:9"),
            ("192.0.2.0/24:443", "192.0.2.9:443", "192.0.2.9:80"),
            ("0.0.0.0/0", "192.0.2.9:443", "[2001:db8::1]:443"),
            ("fd00::/8", "[fdff::1]:1", "[fe00::1]:1"),
            ("2001:db8::1", "[2001:db8::1]:1", "[2001:db8::2]:1"),
            ("[2001:db8::1]:53", "[2001:db8::1]:53", "[2001:db8::1]:54"),
            ("[2001:db8::/32]:53", "[2001:db8:1::1]:53", "[2001:db8::1]:54"),
            ("::/0", "[2001:db8::1]:1", "192.0.2.1:1"),
        ] {
            let rule = rule(text);
            let allows = |at: &str| {
                let at: std::net::SocketAddr = at.parse().unwrap();
                rule.allows_address(at.ip(), at.port())
            };
            assert!(allows(inside) && !allows(outside), "{text}");
            assert_eq!(rule.to_string().parse(), Ok(rule), "{text}");
        }
        assert!(rule("192.0.2.1").allows_address("::ffff:192.0.2.1".parse().unwrap(), 1));
        assert!(!rule("10.0.0.0/8").allows_name("10.0.0.1", Some(1)));
    }

    #[test]
    fn what_is_no_destination_is_refused_with_a_reason() {
        for (text, reason) in [
            ("https://crates.io", "URL"),
            ("crates.io:http", "`http` is not a port"),
            ("crates.io:0", "`0` is not a port"),
            ("crates.io:70000", "not a port"),
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("fd00::/129", "from 0 to 128"),
            ("crates.io/8", "not an address"),
            ("[10.0.0.1]:1", "brackets"),
            ("[fd00::1", "`]` is missing"),
            ("[fd00::1]1", "after `]`"),
            ("*", "leave the list out"),
            ("*:443", "leave the list out"),
            ("bücher.example", "ASCII"),
            ("300.1.1.1", "expected"),
            ("", "expected"),
            ("a..b", "expected"),
            ("a b", "expected"),
            ("*.*.org", "expected"),
            (".org", "expected"),
        ] {
            let error = text.parse::<EgressRule>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn every_rule_is_read_back_from_its_text(text in "(\\*\\.)?[a-z0-9.:/\\[\\]-]{0,20}(:[0-9]{1,5})?") {
            if let Ok(rule) = text.parse::<EgressRule>() {
                prop_assert_eq!(rule.to_string().parse::<EgressRule>(), Ok(rule));
            }
        }
    }
}
