// Notices: what happened, and what to do about it, with buttons for what the page can do itself.

import { EngineError } from '../engine';
import { byId, h } from './dom';

interface Action {
  label: string;
  run: () => void;
}

const HAPPENED: Partial<Record<EngineError['kind'], string>> = {
  NoWebGPU: 'This browser cannot run models here',
  NoGpu: 'No usable GPU was found',
  OutOfMemory: 'The GPU has not enough memory for this',
  DeviceLost: 'The GPU was lost',
  Network: 'The network failed',
  NotFound: 'That is not there',
  MissingFile: 'A file of the model is missing',
  DamagedFile: 'A file of the model is damaged',
  Storage: "The browser's storage failed",
  StorageFull: "The browser's storage is full",
  OtherTab: 'Another tab is in the way',
  NotRunnable: 'This model cannot be run',
  ContextFull: 'The conversation is too long',
  Stopped: 'The engine stopped',
};

/** Shows a notice; one under the same key is replaced. */
export function notice(key: string, title: string, text: string, actions: Action[] = []): void {
  dismiss(key);
  const box = h('div', { class: 'notice', 'data-key': key });
  const close = () => box.remove();
  const buttons = actions.map(({ label, run }) => h('button', { type: 'button', click: () => { close(); run(); } }, label));
  buttons.push(h('button', { type: 'button', click: close }, 'Dismiss'));
  box.append(h('strong', {}, title), h('p', {}, ...words(text)), h('div', { class: 'row' }, ...buttons));
  byId('notices').append(box);
}

/** Names stand in backticks, as they do in a terminal. */
function words(text: string): (HTMLElement | string)[] {
  return text.split('`').map((part, i) => (i % 2 ? h('code', {}, part) : part));
}

/** Shows an error. */
export function failure(key: string, thrown: unknown, actions: Action[] = []): EngineError {
  const error = EngineError.from(thrown);
  // Browsers end their own messages with a period, ours have none.
  const message = error.message.replace(/\.+$/, '');
  const sentence = message.charAt(0).toUpperCase() + message.slice(1);
  const hint = error.hint ? ` What to do: ${error.hint}.` : '';
  notice(key, HAPPENED[error.kind] ?? 'That did not work', `${sentence}.${hint}`, actions);
  return error;
}

export function dismiss(key: string): void {
  for (const box of byId('notices').querySelectorAll<HTMLElement>('[data-key]')) {
    if (box.dataset['key'] === key) box.remove();
  }
}
