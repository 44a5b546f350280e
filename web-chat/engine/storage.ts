// Stored models: a folder per model in the browser's private file system. An incomplete file is `NAME.part`, which a later
// download resumes; a complete file is renamed to `NAME`. This module runs in the worker, because only workers can write to a
// file in place.

import type { ModelFiles } from '../wasm/web_chat.js';
import { EngineError } from './errors';

const FOLDER = 'models';
const ADAPTER_CACHE = 'adapter.json';
const PART = '.part';

/** Bytes that are read at a time. */
const PIECE = 4 << 20;

/** The files of one stored model. */
export class StoredModel implements ModelFiles {
  private readonly opened = new Map<string, File>();

  private constructor(
    readonly id: string,
    private readonly folder: FileSystemDirectoryHandle,
  ) {}

  static async at(id: string): Promise<StoredModel> {
    return new StoredModel(id, await (await models()).getDirectoryHandle(encodeURIComponent(id), { create: true }));
  }

  async size(name: string): Promise<number | undefined> {
    return (await this.file(name))?.size;
  }

  async read(name: string, start: number, end: number): Promise<Uint8Array> {
    const file = await this.file(name);
    if (!file) throw new EngineError('MissingFile', `\`${name}\` is missing in ${this.location()}`);
    return bytesOf(file, start, end);
  }

  async text(name: string): Promise<string | undefined> {
    return (await this.file(name))?.text();
  }

  location(): string {
    return `the stored copy of ${this.id}`;
  }

  /** Opens the incomplete file `NAME.part`. Other tabs cannot open it until it is closed. */
  async part(name: string): Promise<Part> {
    const handle = await this.folder.getFileHandle(name + PART, { create: true });
    try {
      return new Part(this.folder, handle, name, await handle.createSyncAccessHandle());
    } catch (thrown) {
      if ((thrown as Error).name === 'NoModificationAllowedError') {
        throw new EngineError('OtherTab', `another tab is downloading ${this.id}`, 'wait for that download, or close the other tab');
      }
      throw thrown;
    }
  }

  /** Writes a small file. */
  async write(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const part = await this.part(name);
    try {
      part.truncate(0);
      part.append(bytes);
      await part.finish();
    } finally {
      part.close();
    }
    this.opened.delete(name);
  }

  /** Stored bytes of a file, complete or not. */
  async progress(name: string): Promise<{ bytes: number; isWhole: boolean }> {
    const whole = await this.size(name);
    if (whole !== undefined) return { bytes: whole, isWhole: true };
    const part = await existing(this.folder, name + PART);
    return { bytes: part ? (await part.getFile()).size : 0, isWhole: false };
  }

  /** Total size of the folder. */
  async bytes(): Promise<number> {
    let sum = 0;
    for await (const handle of this.folder.values()) {
      if (handle.kind === 'file') sum += (await (handle as FileSystemFileHandle).getFile()).size;
    }
    return sum;
  }

  /** Removes the folder if it is empty. */
  async removeIfEmpty(): Promise<void> {
    for await (const _ of this.folder.keys()) return;
    await removeModel(this.id);
  }

  async discard(name: string): Promise<void> {
    this.opened.delete(name);
    if (await existing(this.folder, name)) await this.folder.removeEntry(name);
  }

  private async file(name: string): Promise<File | undefined> {
    const known = this.opened.get(name);
    if (known) return known;
    const file = await (await existing(this.folder, name))?.getFile();
    if (file) this.opened.set(name, file);
    return file;
  }
}

/** An incomplete file. */
export class Part {
  private size: number;
  private isClosed = false;

  constructor(
    private readonly folder: FileSystemDirectoryHandle,
    private readonly handle: FileSystemFileHandle,
    private readonly name: string,
    private readonly access: FileSystemSyncAccessHandle,
  ) {
    this.size = access.getSize();
  }

  get length(): number {
    return this.size;
  }

  append(bytes: Uint8Array<ArrayBuffer>): void {
    const written = this.access.write(bytes, { at: this.size });
    if (written !== bytes.length) {
      this.access.truncate(this.size);
      throw new EngineError('StorageFull', `\`${this.name}\`: only ${written} of ${bytes.length} bytes could be written`,
        'delete a stored model, or free space on the disk');
    }
    this.size += written;
  }

  /** The bytes written so far, in pieces. */
  *pieces(): Generator<Uint8Array> {
    const buffer = new Uint8Array(Math.min(PIECE, this.size));
    for (let at = 0; at < this.size; ) {
      const read = this.access.read(buffer.subarray(0, Math.min(PIECE, this.size - at)), { at });
      if (read === 0) throw new EngineError('Storage', `the stored part of \`${this.name}\` cannot be read`);
      yield buffer.subarray(0, read);
      at += read;
    }
  }

  truncate(size: number): void {
    this.access.truncate(size);
    this.size = size;
  }

  /** Renames the complete file from `NAME.part` to `NAME`. */
  async finish(): Promise<void> {
    this.access.flush();
    this.close();
    const handle = this.handle as FileSystemFileHandle & { move?: (folder: FileSystemDirectoryHandle, name: string) => Promise<void> };
    if (!handle.move) throw new EngineError('Storage', 'this browser cannot rename stored files', 'update the browser');
    await handle.move(this.folder, this.name);
  }

  close(): void {
    if (!this.isClosed) this.access.close();
    this.isClosed = true;
  }
}

/** The files of a local folder, read in place. */
export class LocalFiles implements ModelFiles {
  constructor(
    private readonly id: string,
    private readonly files: File[],
  ) {}

  private find(name: string): File | undefined {
    return this.files.find((file) => file.name === name);
  }

  async size(name: string): Promise<number | undefined> {
    return this.find(name)?.size;
  }

  async read(name: string, start: number, end: number): Promise<Uint8Array> {
    const file = this.find(name);
    if (!file) throw new EngineError('MissingFile', `\`${name}\` is missing in ${this.location()}`);
    return bytesOf(file, start, end);
  }

  async text(name: string): Promise<string | undefined> {
    return this.find(name)?.text();
  }

  location(): string {
    return this.id;
  }
}

async function bytesOf(file: File, start: number, end: number): Promise<Uint8Array> {
  try {
    return new Uint8Array(await file.slice(start, end).arrayBuffer());
  } catch (thrown) {
    throw new EngineError('Storage', `\`${file.name}\` cannot be read: ${(thrown as Error).message}`, 'download the model again');
  }
}

/** Results of the kernels' self-test, stored so that it runs once per adapter and browser. */
export interface AdapterCache {
  /** Key: adapter and browser. The results are valid only for these. */
  about: string;
  /** The engine's small files, by name. */
  files: Record<string, string>;
}

export async function readAdapterCache(): Promise<AdapterCache | undefined> {
  try {
    const folder = await navigator.storage.getDirectory();
    return JSON.parse((await (await (await folder.getFileHandle(ADAPTER_CACHE)).getFile()).text())) as AdapterCache;
  } catch {
    // Missing or incomplete: the self-test runs again.
    return undefined;
  }
}

export async function writeAdapterCache(cache: AdapterCache): Promise<void> {
  try {
    const handle = await (await navigator.storage.getDirectory()).getFileHandle(ADAPTER_CACHE, { create: true });
    const access = await handle.createSyncAccessHandle();
    try {
      access.truncate(0);
      access.write(new TextEncoder().encode(JSON.stringify(cache)), { at: 0 });
    } finally {
      access.close();
    }
  } catch {
    // Another tab is writing the file, or there is no storage. The self-test runs again next time.
  }
}

/** The ids of all stored models, complete or not. */
export async function storedIds(): Promise<string[]> {
  const ids: string[] = [];
  for await (const name of (await models()).keys()) ids.push(decodeURIComponent(name));
  return ids.sort();
}

export async function removeModel(id: string): Promise<void> {
  await (await models()).removeEntry(encodeURIComponent(id), { recursive: true });
}

async function models(): Promise<FileSystemDirectoryHandle> {
  try {
    return await (await navigator.storage.getDirectory()).getDirectoryHandle(FOLDER, { create: true });
  } catch (thrown) {
    throw new EngineError(
      'Storage',
      `the browser denies storage to this page: ${(thrown as Error).message}`,
      'leave private browsing, or allow this site to store data; a folder dropped on the page needs no storage',
    );
  }
}

async function existing(folder: FileSystemDirectoryHandle, name: string): Promise<FileSystemFileHandle | undefined> {
  try {
    return await folder.getFileHandle(name);
  } catch (thrown) {
    if ((thrown as Error).name === 'NotFoundError') return undefined;
    throw thrown;
  }
}
