// Faster buffer reads in Firefox. Firefox checks for completed reads ten times a second and at each submission. Decode reads
// one token after another, which would limit it to ten tokens per second on any GPU. While a read is pending, this module
// submits empty work.

/** Milliseconds between two submissions. Browsers raise nested timeouts to 4 ms. */
const PAUSE = 1;

/** In Firefox, replaces `mapAsync` of the device's buffers, so that pending reads are polled. */
export function pollReads(device: GPUDevice): void {
  if (!/\bFirefox\//.test(navigator.userAgent)) return;
  let pending = 0;
  const poll = () => {
    if (pending === 0) return;
    device.queue.submit([]);
    setTimeout(poll, PAUSE);
  };
  const create = device.createBuffer.bind(device);
  device.createBuffer = (descriptor) => {
    const buffer = create(descriptor);
    const map = buffer.mapAsync.bind(buffer);
    buffer.mapAsync = async (...range) => {
      pending += 1;
      if (pending === 1) setTimeout(poll, PAUSE);
      try {
        return await map(...range);
      } finally {
        pending -= 1;
      }
    };
    return buffer;
  };
}
