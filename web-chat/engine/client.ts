// WorkerClient: calls the worker's methods and returns promises. After a crash, the next call starts a new worker.

import { EngineError } from './errors';
import type { Methods, Reply, WorkerEvent } from './protocol';

interface Call {
  resolve(value: unknown): void;
  reject(error: EngineError): void;
  onEvent: ((event: WorkerEvent) => void) | undefined;
}

export class WorkerClient {
  private worker: Worker | undefined;
  private readonly calls = new Map<number, Call>();
  private nextId = 0;

  /** Calls a method of the worker. */
  call<M extends keyof Methods>(method: M, ...args: Parameters<Methods[M]>): Promise<ReturnType<Methods[M]>> {
    return this.watch(undefined, method, ...args);
  }

  /** Calls a method of the worker and reports its events. */
  watch<M extends keyof Methods>(
    onEvent: ((event: WorkerEvent) => void) | undefined,
    method: M,
    ...args: Parameters<Methods[M]>
  ): Promise<ReturnType<Methods[M]>> {
    const worker = (this.worker ??= this.start());
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve: resolve as (value: unknown) => void, reject, onEvent });
      worker.postMessage({ id, method, args });
    });
  }

  /** Terminates the worker. Pending calls fail with `error`. */
  end(error = new EngineError('NotLoaded', 'the engine was unloaded')): void {
    this.worker?.terminate();
    this.worker = undefined;
    for (const call of this.calls.values()) call.reject(error);
    this.calls.clear();
  }

  private start(): Worker {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: 'engine' });
    worker.onmessage = ({ data }: MessageEvent<Reply>) => this.receive(data);
    worker.onerror = (event) => {
      event.preventDefault();
      this.end(new EngineError('Stopped', `the engine's worker failed: ${event.message || 'it did not start'}`, 'reload the page'));
    };
    return worker;
  }

  private receive(reply: Reply): void {
    const call = this.calls.get(reply.id);
    if (!call) return;
    if ('event' in reply) {
      call.onEvent?.(reply.event);
      return;
    }
    this.calls.delete(reply.id);
    if ('result' in reply) {
      call.resolve(reply.result);
      return;
    }
    const error = EngineError.fromPlain(reply.error);
    call.reject(error);
    // After a wasm trap, the worker's memory may be inconsistent.
    if (error.kind === 'Stopped') this.end(error);
  }
}
