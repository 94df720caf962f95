// Signs a person in on the pages of the development issuer, in Chromium and without
// a window: opens the page, types their address, and presses "Sign in". Prints the
// heading of the page that they are left with.
//
//   node browser.mjs URL EMAIL
import puppeteer from 'puppeteer-core';

const [url, email] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox'], // root has none
});
try {
  const page = await browser.newPage();
  await page.goto(url);
  await page.type('input[name=email]', email);
  await Promise.all([page.waitForNavigation(), page.click('button[value=allow]')]);
  console.log(await page.$eval('h1, body', (shown) => shown.innerText));
} finally {
  await browser.close();
}
