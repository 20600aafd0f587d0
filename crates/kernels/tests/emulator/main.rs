//! The emulator: each wrapper of `csrc/dev.h` against plain arithmetic, and each kind of mistake in a kernel against the
//! message that names it.

mod faults;
mod mutants;
mod probe;
mod sources;
mod wrappers;
