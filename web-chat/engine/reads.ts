// Reads that come back when they are done. Firefox looks ten times a second whether a buffer can be read, and whenever
// something is submitted: an answer, whose tokens are read one by one, would have ten of them a second on any GPU. So
// something is submitted until it has looked.

/** Milliseconds between two looks. A browser makes four of less. */
const PAUSE = 1;

/** Gives the buffers of a device reads that do not wait for the browser's clock, where it has one. */
export function hurryReads(device: GPUDevice): void {
  if (!/\bFirefox\//.test(navigator.userAgent)) return;
  let reads = 0;
  const look = () => {
    if (reads === 0) return;
    device.queue.submit([]);
    setTimeout(look, PAUSE);
  };
  const create = device.createBuffer.bind(device);
  device.createBuffer = (descriptor) => {
    const buffer = create(descriptor);
    const map = buffer.mapAsync.bind(buffer);
    buffer.mapAsync = async (...range) => {
      reads += 1;
      if (reads === 1) setTimeout(look, PAUSE);
      try {
        return await map(...range);
      } finally {
        reads -= 1;
      }
    };
    return buffer;
  };
}
