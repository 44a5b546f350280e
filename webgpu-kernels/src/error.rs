//! Errors of a GPU, with numbers and hints.

/// The result of a call to a GPU.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a GPU.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No adapter was found.
    #[error("no GPU adapter found")]
    NoAdapter,
    /// No adapter matches the selection.
    #[error("no GPU adapter matches `{selection}`, found: {}", .found.join(", "))]
    NoSuchAdapter {
        /// The selection.
        selection: String,
        /// The adapters, each as `INDEX NAME`.
        found: Vec<String>,
    },
    /// The adapter does not open.
    #[error("the GPU adapter `{adapter}` does not open: {reason}")]
    OpenDevice {
        /// Name of the adapter.
        adapter: String,
        /// The adapter's message.
        reason: String,
    },
    /// A buffer exceeds the device's limit.
    #[error("a GPU buffer of {bytes} bytes is larger than the device's limit: {limit}")]
    BufferTooLarge {
        /// Bytes of the buffer.
        bytes: u64,
        /// The device's limit for one binding, in bytes.
        limit: u64,
    },
    /// Device memory is exhausted.
    #[error("out of GPU memory: {bytes} bytes do not fit beside the {in_use} bytes in use")]
    OutOfMemory {
        /// Bytes of the allocation.
        bytes: u64,
        /// Bytes that this program holds on the device.
        in_use: u64,
    },
    /// The device was lost: driver reset, unplugged, suspended.
    #[error("the GPU was lost: {reason}")]
    DeviceLost {
        /// The driver's message.
        reason: String,
    },
    /// A kernel is wrong on this device and has no substitute.
    #[error("the kernel `{kernel}` [{variant}] is wrong on `{adapter}`: {reason}")]
    WrongKernel {
        /// Name of the kernel.
        kernel: String,
        /// Its variant.
        variant: String,
        /// Name of the device.
        adapter: String,
        /// The difference from the reference.
        reason: String,
    },
    /// A workgroup stopped waiting for another one, so the results are wrong: see [`crate::gemv_chain`]. The same work in separate
    /// dispatches gives correct results.
    #[error("a workgroup of the GPU waited for another in vain")]
    WaitExpired,
    /// A call was rejected: a bug of this program or of the driver.
    #[error("the GPU reported an error: {reason}")]
    Refused {
        /// The message of the validation or of the driver.
        reason: String,
    },
}

impl Error {
    /// The next step for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NoAdapter => Some(
                "install a Vulkan driver (`mesa-vulkan-drivers` and `libvulkan1` on Debian include a software driver), \
                 or run on the CPU"
                    .into(),
            ),
            Error::NoSuchAdapter { .. } => Some("name an adapter by its index or by a part of its name".into()),
            Error::OpenDevice { .. } => Some("update the graphics driver, or choose another device".into()),
            Error::BufferTooLarge { .. } => Some("choose a shorter context or fewer tokens at a time".into()),
            Error::OutOfMemory { .. } => {
                Some("choose a shorter context or a smaller model, or close other programs that use the GPU".into())
            }
            Error::DeviceLost { .. } => Some(
                "start again; if the error returns, the driver may be resetting work that takes too long, \
                 so prefill fewer tokens at a time"
                    .into(),
            ),
            Error::WrongKernel { .. } => Some(
                "update the graphics driver, choose another device, or run on the CPU; \
                 `chat-cli selftest` lists correct and wrong kernels"
                    .into(),
            ),
            Error::WaitExpired | Error::Refused { .. } => None,
        }
    }
}
