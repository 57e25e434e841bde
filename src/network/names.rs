//! The names that a step asks for: which of them it may ask for, and the addresses that they have.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use simple_dns::{
    Name, OPCODE, Packet, PacketFlag, Question, RCODE,
    rdata::{RData, SVCB, SVCParam},
};

use super::dns::{MACHINE_NAME, own_answer};
use crate::model::EgressRule;

/// The most addresses of a step whose names are remembered.
const MAX_ADDRESSES: usize = 16 << 10;
/// The most names of one address that are remembered, if a list allows names.
const MAX_NAMES: usize = 64;
/// The same without a list, when a name is only shown.
const MAX_SHOWN_NAMES: usize = 2;
/// The key of the parameter of a service that has keys to encrypt the name of a handshake.
const ECH: u16 = 5;

/// What to do about a question of the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Answer it here.
    Answered(Vec<u8>),
    /// Answer that there is no such name, because the step may not ask for this one.
    Blocked(Vec<u8>, Arc<str>),
    /// Ask the machine's resolvers.
    Pass,
    /// Nothing, because it is no question.
    Drop,
}

/// The names of a step.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The rules of the step's connections, if there are any.
    egress: Option<Arc<[EgressRule]>>,
    /// The names of each address, the last one that was asked for at the end.
    known: RefCell<HashMap<IpAddr, Vec<Arc<str>>>>,
}

impl Names {
    pub(super) fn new(egress: Option<Arc<[EgressRule]>>) -> Self {
        Self { egress, known: RefCell::default() }
    }

    /// Decides about a message to the resolver.
    pub(super) fn ask(&self, message: &[u8]) -> Asked {
        if let Some(answer) = own_answer(message) {
            if let Ok(parsed) = Packet::parse(&answer) {
                self.learn(&MACHINE_NAME.into(), &parsed);
            }
            return Asked::Answered(answer);
        }
        let Some(rules) = &self.egress else { return Asked::Pass };
        let Ok(asked) = Packet::parse(message) else { return Asked::Drop };
        let [question] = &asked.questions[..] else { return Asked::Drop };
        if asked.has_flags(PacketFlag::RESPONSE) || asked.opcode() != OPCODE::StandardQuery {
            return Asked::Drop;
        }
        let name = host_name(&question.qname);
        match name {
            Some(name) if rules.iter().any(|rule| rule.allows_name(&name, None)) => Asked::Pass,
            name => match without_answers(&asked, question, RCODE::NameError) {
                Some(answer) => {
                    let shown = name.unwrap_or_else(|| question.qname.to_string().escape_debug().to_string());
                    Asked::Blocked(answer, shown.into())
                }
                None => Asked::Drop,
            },
        }
    }

    /// Remembers the addresses in the answer to `message`. Returns the answer for the step: without keys by
    /// which the step could hide the name that it connects to, if names matter.
    pub(super) fn answered(&self, message: &[u8], answer: Vec<u8>) -> Vec<u8> {
        let Ok(asked) = Packet::parse(message) else { return answer };
        let [question] = &asked.questions[..] else { return answer };
        let cleaned = match Packet::parse(&answer) {
            Ok(parsed) => {
                let is_answer = matches!(&parsed.questions[..], [it] if is_same(&it.qname, &question.qname));
                if let Some(name) = host_name(&question.qname).filter(|_| is_answer) {
                    self.learn(&name.into(), &parsed);
                }
                self.egress.as_ref().map(|_| without_keys(parsed))
            }
            // An answer that cannot be checked.
            Err(_) => self.egress.as_ref().map(|_| None),
        };
        match cleaned {
            // Nothing is checked, or nothing had to be changed.
            None | Some(Some(None)) => answer,
            Some(Some(Some(cleaned))) => cleaned,
            Some(None) => without_answers(&asked, question, RCODE::ServerFailure).unwrap_or_default(),
        }
    }

    fn learn(&self, name: &Arc<str>, answer: &Packet<'_>) {
        let most = if self.egress.is_some() { MAX_NAMES } else { MAX_SHOWN_NAMES };
        let mut known = self.known.borrow_mut();
        for address in answer.answers.iter().flat_map(|record| addresses(&record.rdata)) {
            if known.len() >= MAX_ADDRESSES && !known.contains_key(&address) {
                continue;
            }
            let names = known.entry(address).or_default();
            names.retain(|other| other != name);
            if names.len() >= most {
                names.remove(0);
            }
            names.push(Arc::clone(name));
        }
    }

    /// Returns the name that the step asked for last of those that have an address.
    pub(super) fn host(&self, ip: IpAddr) -> Option<Arc<str>> {
        self.known.borrow().get(&ip.to_canonical())?.last().cloned()
    }

    /// Returns whether the step asked for a name that has an address, for which `is_it` returns true.
    pub(super) fn any(&self, ip: IpAddr, is_it: impl Fn(&str) -> bool) -> bool {
        self.known.borrow().get(&ip.to_canonical()).is_some_and(|names| names.iter().any(|name| is_it(name)))
    }
}

/// Returns a name as text, in lower case. Returns `None` if it is not the name of a host: then its text may
/// be that of another name.
fn host_name(name: &Name<'_>) -> Option<String> {
    let is_plain = |label: &[u8]| label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let mut labels = name.as_bytes();
    let is_host = labels.all(is_plain) && !name.get_labels().is_empty();
    is_host.then(|| name.to_string().to_ascii_lowercase())
}

fn is_same(one: &Name<'_>, other: &Name<'_>) -> bool {
    one.to_string().eq_ignore_ascii_case(&other.to_string())
}

/// Returns the addresses in a record: its own, and those that a service recommends.
fn addresses(data: &RData<'_>) -> Vec<IpAddr> {
    match data {
        RData::A(a) => vec![IpAddr::V4(a.address.into())],
        RData::AAAA(aaaa) => vec![IpAddr::V6(aaaa.address.into()).to_canonical()],
        RData::HTTPS(service) => hints(&service.0),
        RData::SVCB(service) => hints(service),
        _ => Vec::new(),
    }
}

fn hints(service: &SVCB<'_>) -> Vec<IpAddr> {
    let hints = service.iter_params().flat_map(|parameter| match parameter {
        SVCParam::Ipv4Hint(all) => all.iter().map(|ip| IpAddr::V4((*ip).into())).collect(),
        SVCParam::Ipv6Hint(all) => all.iter().map(|ip| IpAddr::V6((*ip).into()).to_canonical()).collect(),
        _ => Vec::new(),
    });
    hints.collect()
}

/// Removes the keys from an answer. Returns `Some(None)` if it has none, and `None` if the answer cannot be
/// made.
fn without_keys(mut answer: Packet<'_>) -> Option<Option<Vec<u8>>> {
    let mut is_changed = false;
    let records = [&mut answer.answers, &mut answer.name_servers, &mut answer.additional_records];
    for record in records.into_iter().flatten() {
        let service = match &mut record.rdata {
            RData::HTTPS(service) => &mut service.0,
            RData::SVCB(service) => service,
            _ => continue,
        };
        if service.get_param(ECH).is_some() {
            *service = without_ech(service);
            is_changed = true;
        }
    }
    if is_changed { answer.build_bytes_vec_compressed().ok().map(Some) } else { Some(None) }
}

fn without_ech<'a>(service: &SVCB<'a>) -> SVCB<'a> {
    let mut rest = SVCB::new(service.priority, service.target.clone());
    for parameter in service.iter_params() {
        match parameter {
            SVCParam::Ech(_) => {}
            SVCParam::Mandatory(keys) => {
                let keys: BTreeSet<_> = keys.iter().copied().filter(|key| *key != ECH).collect();
                rest.set_mandatory(keys.into_iter());
            }
            other => rest.set_param(other.clone()),
        }
    }
    rest
}

/// Returns an answer without records.
fn without_answers(asked: &Packet<'_>, question: &Question<'_>, code: RCODE) -> Option<Vec<u8>> {
    let mut answer = Packet::new_reply(asked.id());
    answer.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        answer.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *answer.rcode_mut() = code;
    answer.questions.push(question.clone());
    answer.build_bytes_vec().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{
        CLASS, ResourceRecord, TYPE,
        rdata::{A, AAAA, HTTPS},
    };

    use super::*;

    fn names(egress: &[&str]) -> Names {
        Names::new(Some(egress.iter().map(|rule| rule.parse().unwrap()).collect()))
    }

    fn question(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new_unchecked(name);
        packet.questions.push(Question::new(name, kind.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }

    fn answer(message: &[u8], records: Vec<RData<'_>>) -> Vec<u8> {
        let asked = Packet::parse(message).unwrap();
        let mut answer = asked.clone().into_reply();
        let owner = Name::new_unchecked("alias.example");
        answer.answers.extend(records.into_iter().map(|data| ResourceRecord::new(owner.clone(), CLASS::IN, 60, data)));
        answer.build_bytes_vec().unwrap()
    }

    #[test]
    fn names_that_are_not_listed_do_not_exist_for_the_step() {
        let names = names(&["crates.io:443", "*.debian.org", "192.0.2.0/24"]);
        for name in ["crates.io", "CRATES.io", "deb.debian.org", "a.b.debian.org"] {
            assert_eq!(names.ask(&question(name, TYPE::A)), Asked::Pass, "{name}");
        }
        for name in ["debian.org", "evil.example", "crates.io.evil.example", "xcrates.io", "1.2.0.192.in-addr.arpa"] {
            for kind in [TYPE::A, TYPE::TXT, TYPE::HTTPS] {
                let Asked::Blocked(answer, blocked) = names.ask(&question(name, kind)) else { panic!("{name}") };
                let answer = Packet::parse(&answer).unwrap();
                assert_eq!((answer.id(), answer.rcode(), &*blocked), (7, RCODE::NameError, name));
                assert!(answer.has_flags(PacketFlag::RESPONSE) && answer.answers.is_empty());
            }
        }
        assert!(matches!(names.ask(&question("host.hm.internal", TYPE::A)), Asked::Answered(_)));
        assert_eq!(names.host("10.0.2.2".parse().unwrap()), Some("host.hm.internal".into()));
        assert_eq!(names.ask(b"no question"), Asked::Drop);
        assert_eq!(Names::default().ask(b"no question"), Asked::Pass);
        let mut reply = Packet::parse(&question("crates.io", TYPE::A)).unwrap().into_reply().build_bytes_vec().unwrap();
        assert_eq!(names.ask(&reply), Asked::Drop);
        reply.clear();
        assert_eq!(names.ask(&reply), Asked::Drop);
    }

    #[test]
    fn a_label_with_a_dot_is_not_two_labels() {
        // One label, `evil.debian`, below `org`.
        let mut message = question("evilxdebian.org", TYPE::A);
        let at = message.iter().position(|byte| *byte == b'x').unwrap();
        message[at] = b'.';
        assert!(matches!(names(&["*.debian.org", "evil.debian.org"]).ask(&message), Asked::Blocked(..)));
    }

    #[test]
    fn addresses_are_known_by_the_names_that_were_asked_for() {
        let names = Names::default();
        let [v4, v6] = ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let records = || {
            let v6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
            vec![RData::A(A { address: 0xc000_0207 }), RData::AAAA(AAAA { address: v6.into() })]
        };
        for name in ["One.example", "two.example"] {
            let message = question(name, TYPE::A);
            let bytes = answer(&message, records());
            assert_eq!(names.answered(&message, bytes.clone()), bytes);
        }
        assert_eq!((names.host(v4), names.host(v6)), (Some("two.example".into()), Some("two.example".into())));
        assert!(names.any(v4, |name| name == "one.example") && !names.any(v4, |name| name == "alias.example"));
        // The answer to another question.
        let (asked, other) = (question("three.example", TYPE::A), question("two.example", TYPE::A));
        names.answered(&asked, answer(&other, vec![RData::A(A { address: 1 })]));
        assert_eq!(names.host("0.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn keys_that_hide_names_are_removed_and_hints_are_addresses() {
        let names = names(&["a.example"]);
        let message = question("a.example", TYPE::HTTPS);
        let mut service = SVCB::new(1, Name::new_unchecked("a.example"));
        service.set_port(443);
        service.set_ipv4hint(&[0xc000_0209]);
        let plain = answer(&message, vec![RData::HTTPS(HTTPS(service.clone()))]);
        assert_eq!(names.answered(&message, plain.clone()), plain);
        service.set_mandatory([ECH, 3].into_iter());
        service.set_param(SVCParam::Ech(b"keys".as_slice().into()));
        let with_keys = answer(&message, vec![RData::HTTPS(HTTPS(service)), RData::A(A { address: 5 })]);
        let cleaned = names.answered(&message, with_keys);
        let cleaned = Packet::parse(&cleaned).unwrap();
        assert_eq!(cleaned.answers.len(), 2);
        let RData::HTTPS(left) = &cleaned.answers[0].rdata else { panic!("another record") };
        assert_eq!(left.0.get_param(ECH), None);
        assert_eq!(left.0.get_param(3), Some(&SVCParam::Port(443)));
        assert_eq!(left.0.get_param(0), Some(&SVCParam::Mandatory([3].into())));
        assert_eq!(names.host("192.0.2.9".parse().unwrap()), Some("a.example".into()));
        // An answer that cannot be read could have keys.
        let failed = names.answered(&message, vec![0, 7, 1]);
        assert_eq!(Packet::parse(&failed).unwrap().rcode(), RCODE::ServerFailure);
        assert_eq!(Names::default().answered(&message, vec![0, 7, 1]), [0, 7, 1]);
    }

    proptest! {
        #[test]
        fn any_bytes_may_come_from_both_sides(message in prop::collection::vec(any::<u8>(), 0..200),
                                              answer in prop::collection::vec(any::<u8>(), 0..200)) {
            for names in [Names::default(), names(&["*.example"])] {
                let _ = names.ask(&message);
                let _ = names.answered(&message, answer.clone());
                let _ = names.answered(&question("a.example", TYPE::A), answer.clone());
            }
        }
    }
}
