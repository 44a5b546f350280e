//! What can go wrong on a GPU, with the numbers, and what to do about it.

/// The result of asking something of a GPU.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong on a GPU.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No adapter answers.
    #[error("no GPU adapter found")]
    NoAdapter,
    /// The selection matches none of the adapters.
    #[error("no GPU adapter matches `{selection}`, found: {}", .found.join(", "))]
    NoSuchAdapter {
        /// What was asked for.
        selection: String,
        /// The adapters there are, each as `INDEX NAME`.
        found: Vec<String>,
    },
    /// The adapter refuses to open.
    #[error("the GPU adapter `{adapter}` does not open: {reason}")]
    OpenDevice {
        /// Name of the adapter.
        adapter: String,
        /// What it said.
        reason: String,
    },
    /// One buffer is larger than the device allows.
    #[error("a GPU buffer of {bytes} bytes is larger than the device's limit: {limit}")]
    BufferTooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes the device allows in one buffer that a kernel sees.
        limit: u64,
    },
    /// Device memory is used up.
    #[error("out of GPU memory: {bytes} bytes do not fit beside the {in_use} bytes in use")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that this program holds on the device.
        in_use: u64,
    },
    /// The device is gone: driver reset, unplugged, asleep.
    #[error("the GPU was lost: {reason}")]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// A kernel computes something else than it should on this device, and nothing does the same in another way.
    #[error("the kernel `{kernel}` [{variant}] is wrong on `{adapter}`: {reason}")]
    WrongKernel {
        /// Name of the kernel.
        kernel: String,
        /// Its variant.
        variant: String,
        /// The device.
        adapter: String,
        /// What came out.
        reason: String,
    },
    /// A workgroup stopped waiting for another, so that the results are wrong: see [`crate::gemv_chain`]. The same work without waiting
    /// gives the right ones.
    #[error("a workgroup of the GPU waited for another in vain")]
    WaitExpired,
    /// A call was refused: a fault of ours or of the driver's.
    #[error("the GPU reported an error: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NoAdapter => Some(
                "install a Vulkan driver (`mesa-vulkan-drivers` and `libvulkan1` on Debian also bring a software one), \
                 or run on the CPU"
                    .into(),
            ),
            Error::NoSuchAdapter { .. } => Some("name one of them by index or by a part of its name".into()),
            Error::OpenDevice { .. } => Some("update the graphics driver, or choose another device".into()),
            Error::BufferTooLarge { .. } => Some("choose a shorter context or fewer tokens at a time".into()),
            Error::OutOfMemory { .. } => {
                Some("choose a shorter context or a smaller model, or close other programs that use the GPU".into())
            }
            Error::DeviceLost { .. } => Some(
                "start again; if it comes back, the driver may be resetting work that takes too long, \
                 so prefill fewer tokens at a time"
                    .into(),
            ),
            Error::WrongKernel { .. } => Some(
                "update the graphics driver, choose another device, or run on the CPU; \
                 `chat-cli selftest` shows which kernels are right"
                    .into(),
            ),
            Error::WaitExpired | Error::Refused { .. } => None,
        }
    }
}
