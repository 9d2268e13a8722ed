//! The operator's page in a real browser: what people do there, and what they then see. Chromium, headless, by its
//! WebDriver. Pictures of what was looked at are left in `target/screenshots`.

mod dead_letters;
mod docs;
mod driver;
mod keys;
mod orders;
mod page;
mod troubles;

use page::Page;
