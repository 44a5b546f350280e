//! The layout of a set of links: words of the flags, the counter and the values. The shader gets them as constants.

/// The word of a value that is not published yet: a NaN that arithmetic does not produce.
pub(super) const PENDING: u32 = u32::MAX;
/// The word for a chosen token. The flag is next to it, so that one copy reads both.
pub(super) const TOKEN: usize = 0;
/// The word that becomes nonzero when a workgroup stops waiting. It is never reset.
pub(super) const EXPIRED: usize = 1;
/// The word that counts workgroups. A dispatch resets the words of the other set from here on.
pub(super) const TICKET: usize = 32;
/// The first value.
pub(super) const VALUES: usize = 64;

/// Polls after which a workgroup checks whether another has stopped waiting.
pub(super) const POLLS_TO_CHECK: u32 = 256;
