//! Filters that a step installs itself.

use rustix::io::Errno;

use super::caller::Caller;

/// Returns whether a filter that the step is about to install hands calls to a listener or to a tracer: both
/// would not get those that are reported to pid 1.
pub(super) fn has_own_tracer(caller: &Caller<'_>, by_seccomp: bool) -> Result<bool, Errno> {
    const NEW_LISTENER: u64 = 1 << 3;
    const MAX_INSTRUCTIONS: usize = 4096;
    const ACTION: u32 = 0xffff_0000;
    let arguments = &caller.call.arguments;
    // struct sock_fprog: the number of instructions, and their address.
    let program = caller.bytes(arguments[2], 16)?;
    let (Some(length), Some(address)) = (program.first_chunk::<2>(), program.get(8..16)) else { return Ok(false) };
    let length = usize::from(u16::from_le_bytes(*length)).min(MAX_INSTRUCTIONS);
    let address = u64::from_le_bytes(address.try_into().unwrap_or_default());
    // Programs find out what the kernel can do by a call without a filter.
    if by_seccomp && arguments[1] & NEW_LISTENER != 0 {
        return Ok(true);
    }
    let code = caller.bytes(address, length * 8)?;
    Ok(code.chunks_exact(8).any(|instruction| {
        let code = u16::from_le_bytes([instruction[0], instruction[1]]);
        let constant = u32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        // A result that is computed may be any.
        code == 0x16 || (code == 0x06 && constant & ACTION == libc::SECCOMP_RET_TRACE)
    }))
}
