// Runs a script of this folder against `lemniscate serve`: node tests/browser/with_server.mjs PROGRAM RUN SCRIPT [ARGUMENTS]
// The script gets the server's address before its own arguments; its exit code becomes ours.
import { spawn, spawnSync } from 'node:child_process';
import process from 'node:process';

const [program, run, script, ...more] = process.argv.slice(2);
if (!script) throw new Error('usage: node with_server.mjs PROGRAM RUN SCRIPT [ARGUMENTS]');
const server = spawn(program, ['serve', run, '--port', '0'], { stdio: ['ignore', 'pipe', 'inherit'] });
let said = '';
const address = await new Promise((resolve, reject) => {
  server.stdout.on('data', (text) => {
    said += text;
    const found = /serving at (http:\/\/[^/\s]+)/.exec(said);
    if (found) resolve(found[1]);
  });
  server.on('exit', () => reject(new Error(`the server ended: ${said}`)));
});
const { status } = spawnSync('node', [script, address, ...more], { stdio: 'inherit' });
server.kill('SIGINT');
process.exit(status ?? 1);
