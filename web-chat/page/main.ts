// Entry point: connects the page's panels. Read `chat.ts` next for the conversation, and `models.ts` for downloads.

import { Engine } from '../engine';
import { ChatPanel } from './chat';
import { DevicePanel } from './device';
import { byId, h } from './dom';
import { loadAll, newConversation, remove } from './history';
import { ModelPanel, nameOf } from './models';
import { failure, notice } from './notices';
import { SettingsForm } from './settings';

// Trusted Types: allow scripts only from the page's own origin.
(globalThis as { trustedTypes?: { createPolicy(name: string, rules: object): unknown } }).trustedTypes?.createPolicy('default', {
  createScriptURL: (url: string) => {
    if (new URL(url, location.href).origin !== location.origin) throw new TypeError(`script from another origin: ${url}`);
    return url;
  },
});

const engine = new Engine({
  onDeviceLost: (message) => notice('chat', 'The GPU was lost', `${message}. The model is being loaded again, and the answer continues.`),
});
const settings = new SettingsForm();
const device = new DevicePanel(engine);
const chat = new ChatPanel(engine, settings, (usage) => {
  if (usage) void engine.loaded().then((loaded) => device.update(loaded, usage));
  void showHistory();
});
const models = new ModelPanel(engine, {
  loaded(info) {
    byId('model-state').textContent = nameOf(info.id);
    byId('model-state').title = info.id;
    settings.showDefaults(info);
    device.update(info);
    chat.setReady(true);
    show('chat');
    chat.focus();
    // Milliseconds from opening the page until the chat is usable, for tests/measure.mjs.
    document.documentElement.dataset['ready'] = String(Math.round(performance.now()));
  },
  unloaded() {
    byId('model-state').textContent = 'No model is loaded';
    device.update(undefined);
    chat.setReady(false);
  },
}, () => settings.read().context);

async function showHistory(): Promise<void> {
  const list = await loadAll().catch((thrown: unknown) => {
    failure('history', thrown);
    return [];
  });
  byId('conversations').replaceChildren(...list.map((conversation) => {
    const isCurrent = conversation.id === chat.current.id;
    const open = () => {
      void chat.open(conversation);
      show('chat');
    };
    const discard = async () => {
      await remove(conversation.id);
      if (isCurrent) await chat.open(newConversation());
      await showHistory();
    };
    return h('li', isCurrent ? { 'aria-current': 'true' } : {},
      h('strong', {}, conversation.title), h('span', { class: 'hint' }, new Date(conversation.changed).toLocaleString()),
      h('div', { class: 'row' },
        h('button', { type: 'button', click: open, 'aria-label': `Open: ${conversation.title}` }, 'Open'),
        h('button', { type: 'button', click: () => void discard(), 'aria-label': `Delete: ${conversation.title}` }, 'Delete')));
  }));
}

/** Shows a panel. On wide screens, the chat stays beside it. */
function show(panel: string): void {
  document.body.dataset['panel'] = panel;
  for (const button of document.querySelectorAll<HTMLButtonElement>('nav button')) {
    button.setAttribute('aria-pressed', String(button.dataset['show'] === panel));
  }
}

for (const button of document.querySelectorAll<HTMLButtonElement>('nav button')) {
  button.addEventListener('click', () => {
    const panel = button.dataset['show']!;
    show(panel);
    if (panel === 'chat') chat.focus();
    else byId(`${panel}-title`).focus();
  });
}
byId('new-chat').addEventListener('click', () => {
  void chat.open(newConversation());
  show('chat');
});

show('models');
void showHistory();
if ('serviceWorker' in navigator) {
  navigator.serviceWorker.register('./service-worker.js').catch((thrown: unknown) => console.warn('the service worker was not registered:', thrown));
}
await models.refresh();
if (await device.open()) {
  const last = localStorage.getItem('model');
  if (last) await models.loadStored(last);
}
document.documentElement.dataset['started'] = 'true';
