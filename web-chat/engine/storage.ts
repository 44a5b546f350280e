// Where models are kept: a folder per model in the browser's private file system. A file has its own name only once it is
// whole; until then it is `NAME.part`, which a later download goes on with. Runs in the worker: only there can a file be
// written at a position without copying it.

import type { ModelFiles } from '../wasm/web_chat.js';
import { EngineError } from './errors';

const FOLDER = 'models';
const NOTES = 'adapter.json';
const PART = '.part';

/** How many bytes a checksum or a copy takes at a time. */
export const PIECE = 4 << 20;

/** The files of one kept model. */
export class KeptModel implements ModelFiles {
  private readonly open = new Map<string, File>();

  private constructor(
    readonly id: string,
    private readonly folder: FileSystemDirectoryHandle,
  ) {}

  static async at(id: string): Promise<KeptModel> {
    return new KeptModel(id, await (await models()).getDirectoryHandle(encodeURIComponent(id), { create: true }));
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
    return `the browser's copy of ${this.id}`;
  }

  /** Opens the unfinished copy of a file. It is this tab's until it is closed. */
  async part(name: string): Promise<Part> {
    const handle = await this.folder.getFileHandle(name + PART, { create: true });
    try {
      return new Part(this.folder, handle, name, await handle.createSyncAccessHandle());
    } catch (thrown) {
      if ((thrown as Error).name === 'NoModificationAllowedError') {
        throw new EngineError('OtherTab', `another tab is downloading ${this.id}`, 'wait for it, or close that tab');
      }
      throw thrown;
    }
  }

  /** Writes a small file whole. */
  async write(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const part = await this.part(name);
    try {
      part.truncate(0);
      part.append(bytes);
      await part.finish();
    } finally {
      part.close();
    }
    this.open.delete(name);
  }

  /** Bytes that are there of a file, finished or not. */
  async progress(name: string): Promise<{ bytes: number; isWhole: boolean }> {
    const whole = await this.size(name);
    if (whole !== undefined) return { bytes: whole, isWhole: true };
    const part = await existing(this.folder, name + PART);
    return { bytes: part ? (await part.getFile()).size : 0, isWhole: false };
  }

  /** Bytes of everything in the folder. */
  async bytes(): Promise<number> {
    let sum = 0;
    for await (const handle of this.folder.values()) {
      if (handle.kind === 'file') sum += (await (handle as FileSystemFileHandle).getFile()).size;
    }
    return sum;
  }

  /** Leaves no folder behind of which there is nothing. */
  async removeIfEmpty(): Promise<void> {
    for await (const _ of this.folder.keys()) return;
    await removeModel(this.id);
  }

  async discard(name: string): Promise<void> {
    this.open.delete(name);
    if (await existing(this.folder, name)) await this.folder.removeEntry(name);
  }

  private async file(name: string): Promise<File | undefined> {
    const known = this.open.get(name);
    if (known) return known;
    const file = await (await existing(this.folder, name))?.getFile();
    if (file) this.open.set(name, file);
    return file;
  }
}

/** A file that is not whole yet. */
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
        'delete a model you no longer need, or free space on the disk');
    }
    this.size += written;
  }

  /** Every byte so far, in pieces. */
  *pieces(): Generator<Uint8Array> {
    const buffer = new Uint8Array(Math.min(PIECE, this.size));
    for (let at = 0; at < this.size; ) {
      const read = this.access.read(buffer.subarray(0, Math.min(PIECE, this.size - at)), { at });
      if (read === 0) throw new EngineError('Storage', `\`${this.name}\` cannot be read back`);
      yield buffer.subarray(0, read);
      at += read;
    }
  }

  truncate(size: number): void {
    this.access.truncate(size);
    this.size = size;
  }

  /** Gives the file its own name: it is whole. */
  async finish(): Promise<void> {
    this.access.flush();
    this.close();
    const handle = this.handle as FileSystemFileHandle & { move?: (folder: FileSystemDirectoryHandle, name: string) => Promise<void> };
    if (!handle.move) throw new EngineError('Storage', 'this browser cannot rename its files', 'update the browser');
    await handle.move(this.folder, this.name);
  }

  close(): void {
    if (!this.isClosed) this.access.close();
    this.isClosed = true;
  }
}

/** The files of a folder that was dropped on the page: nothing is copied. */
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

/** What was found out about this adapter's kernels in this browser, so that it is found out once. */
export interface AdapterNotes {
  /** Adapter and browser: of others it says nothing. */
  about: string;
  files: Record<string, string>;
}

export async function readNotes(): Promise<AdapterNotes | undefined> {
  try {
    const folder = await navigator.storage.getDirectory();
    return JSON.parse((await (await (await folder.getFileHandle(NOTES)).getFile()).text())) as AdapterNotes;
  } catch {
    // None, or half of them: they are made again.
    return undefined;
  }
}

export async function writeNotes(notes: AdapterNotes): Promise<void> {
  try {
    const handle = await (await navigator.storage.getDirectory()).getFileHandle(NOTES, { create: true });
    const access = await handle.createSyncAccessHandle();
    try {
      access.truncate(0);
      access.write(new TextEncoder().encode(JSON.stringify(notes)), { at: 0 });
    } finally {
      access.close();
    }
  } catch {
    // Another tab writes the same, or there is no storage: kernels are checked again next time.
  }
}

/** The ids of all models of which something is kept. */
export async function keptIds(): Promise<string[]> {
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
      `the browser gives this page no storage: ${(thrown as Error).message}`,
      'leave private browsing, or allow this site to keep data; a folder dropped on the page needs no storage',
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
