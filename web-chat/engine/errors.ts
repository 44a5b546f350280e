// EngineError: what went wrong, of which kind, and what to do about it. Errors of the wasm come as `Error`s whose `name`
// is the kind; between worker and page they travel as plain objects.

export type ErrorKind =
  | 'NoWebGPU' // the browser has none, or not on this page
  | 'NoGpu' // no adapter, or it does not open
  | 'OutOfMemory'
  | 'DeviceLost'
  | 'Gpu'
  | 'Network'
  | 'NotFound' // no such model or file
  | 'MissingFile'
  | 'DamagedFile'
  | 'Storage'
  | 'StorageFull'
  | 'OtherTab'
  | 'NotRunnable' // an architecture or a format that the engine does not run
  | 'ContextFull'
  | 'BadParameter'
  | 'Busy'
  | 'NotLoaded'
  | 'Paused'
  | 'Stopped' // the engine ended by a fault of its own
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
      return new EngineError('Stopped', `the engine stopped by a fault of its own: ${thrown.message}`, 'load the model again');
    }
    const error = thrown as Partial<Error & { hint: string }>;
    const message = error?.message ?? String(thrown);
    if (error?.name === 'QuotaExceededError') {
      return new EngineError('StorageFull', message, 'delete a model you no longer need, or free space on the disk');
    }
    if (thrown instanceof DOMException) return new EngineError('Storage', `${error.name}: ${message}`);
    const kind = KINDS.has(error?.name ?? '') ? (error.name as ErrorKind) : 'Engine';
    return new EngineError(kind, message, error?.hint);
  }

  static revive({ kind, message, hint }: PlainError): EngineError {
    return new EngineError(kind, message, hint);
  }

  plain(): PlainError {
    return { kind: this.kind, message: this.message, hint: this.hint };
  }
}

/** The kinds that the wasm throws (`src/error.rs`). */
const KINDS = new Set([
  'NoGpu', 'OutOfMemory', 'DeviceLost', 'Gpu', 'MissingFile', 'Storage', 'NotRunnable', 'DamagedFile', 'ContextFull',
  'BadParameter', 'Engine',
]);
