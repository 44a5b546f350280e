// EngineError: kind, message and hint of an error. The wasm throws `Error`s whose `name` is the kind. Messages between worker
// and page carry errors as plain objects.

export type ErrorKind =
  | 'NoWebGPU' // not offered by the browser, or not to this page
  | 'NoGpu' // no adapter, or it cannot be opened
  | 'OutOfMemory'
  | 'DeviceLost'
  | 'Gpu'
  | 'Network'
  | 'NotFound' // the model or file does not exist, or is not public
  | 'MissingFile'
  | 'DamagedFile'
  | 'Storage'
  | 'StorageFull'
  | 'OtherTab'
  | 'NotRunnable' // unsupported architecture or format
  | 'ContextFull'
  | 'BadParameter'
  | 'Busy'
  | 'NotLoaded'
  | 'Paused'
  | 'Stopped' // the engine crashed
  | 'Engine';

export interface PlainError {
  kind: ErrorKind;
  message: string;
  hint?: string | undefined;
}

export class EngineError extends Error {
  readonly kind: ErrorKind;
  readonly hint: string | undefined;

  constructor(kind: ErrorKind, message: string, hint?: string) {
    super(message);
    this.name = kind;
    this.kind = kind;
    this.hint = hint;
  }

  static from(thrown: unknown): EngineError {
    if (thrown instanceof EngineError) return thrown;
    if (thrown instanceof WebAssembly.RuntimeError) {
      return new EngineError('Stopped', `the engine crashed: ${thrown.message}`, 'load the model again');
    }
    const error = thrown as Partial<Error & { hint: string }>;
    const message = error?.message ?? String(thrown);
    if (error?.name === 'QuotaExceededError') {
      return new EngineError('StorageFull', message, 'delete a stored model, or free space on the disk');
    }
    if (thrown instanceof DOMException) return new EngineError('Storage', `${error.name}: ${message}`);
    const kind = WASM_KINDS.has(error?.name ?? '') ? (error.name as ErrorKind) : 'Engine';
    return new EngineError(kind, message, error?.hint);
  }

  static fromPlain({ kind, message, hint }: PlainError): EngineError {
    return new EngineError(kind, message, hint);
  }

  toPlain(): PlainError {
    return { kind: this.kind, message: this.message, hint: this.hint };
  }
}

/** Kinds that the wasm throws (`src/error.rs`). */
const WASM_KINDS = new Set([
  'NoGpu', 'OutOfMemory', 'DeviceLost', 'Gpu', 'MissingFile', 'Storage', 'NotRunnable', 'DamagedFile', 'ContextFull',
  'BadParameter', 'Engine',
]);
