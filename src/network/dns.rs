//! Questions that are answered here: the name of the machine.

use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};

use super::addresses::{MACHINE_V4, MACHINE_V6};

/// The name of the machine that a step runs on.
pub(crate) const MACHINE_NAME: &str = "host.hm.internal";
/// How long an answer is valid, in seconds.
const LIFETIME: u32 = 60;

/// Returns the answer to a question about the machine's own name, or `None` if the message is anything else.
pub(super) fn own_answer(message: &[u8]) -> Option<Vec<u8>> {
    let asked = Packet::parse(message).ok()?;
    let [question] = &asked.questions[..] else { return None };
    if asked.has_flags(PacketFlag::RESPONSE) || !question.qname.to_string().eq_ignore_ascii_case(MACHINE_NAME) {
        return None;
    }
    let mut answer = Packet::new_reply(asked.id());
    answer.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        answer.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    let is_internet = matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    let data = match question.qtype {
        QTYPE::TYPE(TYPE::A) if is_internet => Some(RData::A(A { address: MACHINE_V4.into() })),
        QTYPE::TYPE(TYPE::AAAA) if is_internet => Some(RData::AAAA(AAAA { address: MACHINE_V6.into() })),
        // The name exists, but has nothing else.
        _ => None,
    };
    if let Some(data) = data {
        let name = Name::new(MACHINE_NAME).ok()?;
        answer.answers.push(ResourceRecord::new(name, CLASS::IN, LIFETIME, data));
    }
    answer.questions.push(question.clone());
    answer.build_bytes_vec().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::Question;

    use super::*;

    fn ask(name: &str, kind: TYPE) -> Option<Vec<u8>> {
        let mut packet = Packet::new_query(77);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(Name::new(name).unwrap(), kind.into(), CLASS::IN.into(), false));
        own_answer(&packet.build_bytes_vec().unwrap())
    }

    #[test]
    fn the_machine_has_a_name() {
        for (kind, answers) in [(TYPE::A, 1), (TYPE::AAAA, 1), (TYPE::MX, 0)] {
            let answer = ask("Host.HM.internal", kind).unwrap();
            let answer = Packet::parse(&answer).unwrap();
            assert_eq!((answer.id(), answer.questions.len(), answer.answers.len()), (77, 1, answers));
            assert!(answer.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
        }
        assert_eq!(ask("host.hm.internal.example", TYPE::A), None);
        assert_eq!(ask("pypi.org", TYPE::A), None);
    }

    proptest! {
        #[test]
        fn bytes_without_sense_are_passed_on(message in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = own_answer(&message);
        }
    }
}
