package store

// migrations bring the database from version i to i+1. What is released is
// never edited; a change is a new entry.
var migrations = []string{
	`CREATE TABLE templates (
		digest       TEXT PRIMARY KEY,
		state        TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
		source       TEXT NOT NULL,
		virtual_size INTEGER NOT NULL,
		user         TEXT NOT NULL DEFAULT '',
		created_at   INTEGER NOT NULL, -- ns since 1970
		file_size    INTEGER NOT NULL, -- of the stored image,
		file_mtime   INTEGER NOT NULL  -- to notice a change
	) STRICT;
	CREATE TABLE template_names (
		name   TEXT PRIMARY KEY,
		digest TEXT NOT NULL REFERENCES templates (digest) ON DELETE CASCADE
	) STRICT;
	CREATE INDEX template_names_digest ON template_names (digest);
	-- Files that were imported, as they were then.
	CREATE TABLE sources (
		path   TEXT NOT NULL,
		format TEXT NOT NULL, -- as asked for, '' for probed
		dev    INTEGER NOT NULL,
		inode  INTEGER NOT NULL,
		size   INTEGER NOT NULL,
		mtime  INTEGER NOT NULL,
		ctime  INTEGER NOT NULL,
		digest TEXT NOT NULL REFERENCES templates (digest) ON DELETE CASCADE,
		PRIMARY KEY (path, format)
	) STRICT;
	CREATE INDEX sources_digest ON sources (digest);
	CREATE TABLE machines (
		id         TEXT PRIMARY KEY,
		name       TEXT NOT NULL UNIQUE,
		state      TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
		digest     TEXT NOT NULL REFERENCES templates (digest) ON DELETE RESTRICT,
		template   TEXT NOT NULL, -- the name it was asked for by
		user       TEXT NOT NULL,
		created_at INTEGER NOT NULL,
		config     TEXT NOT NULL, -- JSON; no password, no user-data
		spec       TEXT NOT NULL, -- JSON
		last       TEXT NOT NULL  -- JSON: what the last run came to
	) STRICT;
	CREATE INDEX machines_digest ON machines (digest);
	CREATE TRIGGER machine_needs_ready_template BEFORE INSERT ON machines
	WHEN NOT EXISTS (SELECT 1 FROM templates WHERE digest = NEW.digest AND state = 'ready')
	BEGIN SELECT RAISE(ABORT, 'the template is not there, or being removed'); END;
	CREATE TRIGGER template_is_needed BEFORE UPDATE OF state ON templates
	WHEN NEW.state = 'removing' AND EXISTS (SELECT 1 FROM machines WHERE digest = NEW.digest)
	BEGIN SELECT RAISE(ABORT, 'machines need the template'); END;`,

	// Machines without a template: made of a whole description. SQLite cannot
	// drop a NOT NULL, so the table is made anew.
	`DROP TRIGGER template_is_needed;
	CREATE TABLE new_machines (
		id         TEXT PRIMARY KEY,
		name       TEXT NOT NULL UNIQUE,
		state      TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
		digest     TEXT REFERENCES templates (digest) ON DELETE RESTRICT, -- NULL: it has a definition
		template   TEXT NOT NULL, -- the name it was asked for by
		user       TEXT NOT NULL,
		created_at INTEGER NOT NULL,
		config     TEXT NOT NULL, -- JSON; no password, no user-data
		spec       TEXT NOT NULL, -- JSON
		last       TEXT NOT NULL, -- JSON: what the last run came to
		definition TEXT           -- JSON; NULL: it has a template
	) STRICT;
	INSERT INTO new_machines SELECT *, NULL FROM machines;
	DROP TABLE machines;
	ALTER TABLE new_machines RENAME TO machines;
	CREATE INDEX machines_digest ON machines (digest);
	CREATE TRIGGER machine_needs_ready_template BEFORE INSERT ON machines
	WHEN NEW.digest IS NOT NULL
		AND NOT EXISTS (SELECT 1 FROM templates WHERE digest = NEW.digest AND state = 'ready')
	BEGIN SELECT RAISE(ABORT, 'the template is not there, or being removed'); END;
	CREATE TRIGGER template_is_needed BEFORE UPDATE OF state ON templates
	WHEN NEW.state = 'removing' AND EXISTS (SELECT 1 FROM machines WHERE digest = NEW.digest)
	BEGIN SELECT RAISE(ABORT, 'machines need the template'); END;`,
	// Layers: a template may lie over another one, and may be what a machine was
	// at some instant. Warm units, fleets, settings.
	`ALTER TABLE templates ADD COLUMN kind TEXT NOT NULL DEFAULT 'template' CHECK (kind IN ('template', 'frozen', 'warm'));
	ALTER TABLE templates ADD COLUMN parent TEXT REFERENCES templates (digest) ON DELETE RESTRICT; -- the layer below
	ALTER TABLE templates ADD COLUMN info TEXT NOT NULL DEFAULT '{}'; -- JSON: what the image is
	ALTER TABLE templates ADD COLUMN compress TEXT NOT NULL DEFAULT 'none';
	-- With file_size and file_mtime; 0 is not looked at yet.
	ALTER TABLE templates ADD COLUMN file_ctime INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE templates ADD COLUMN file_inode INTEGER NOT NULL DEFAULT 0;
	-- Of the file, where the key (digest) is a random id; '' is not computed yet.
	ALTER TABLE templates ADD COLUMN sha256 TEXT NOT NULL DEFAULT '';
	ALTER TABLE templates ADD COLUMN origin TEXT NOT NULL DEFAULT ''; -- the machine that it was made of
	ALTER TABLE templates ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0; -- ns since 1970
	CREATE INDEX templates_parent ON templates (parent);

	-- The same file makes another template for each way to store it.
	CREATE TABLE new_sources (
		path     TEXT NOT NULL,
		format   TEXT NOT NULL, -- as asked for, '' for probed
		compress TEXT NOT NULL,
		dev      INTEGER NOT NULL,
		inode    INTEGER NOT NULL,
		size     INTEGER NOT NULL,
		mtime    INTEGER NOT NULL,
		ctime    INTEGER NOT NULL,
		digest   TEXT NOT NULL REFERENCES templates (digest) ON DELETE CASCADE,
		PRIMARY KEY (path, format, compress)
	) STRICT;
	INSERT INTO new_sources SELECT path, format, 'none', dev, inode, size, mtime, ctime, digest FROM sources;
	DROP TABLE sources;
	ALTER TABLE new_sources RENAME TO sources;
	CREATE INDEX sources_digest ON sources (digest);

	CREATE TABLE units (
		id         TEXT PRIMARY KEY,
		state      TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
		template   TEXT NOT NULL REFERENCES templates (digest) ON DELETE RESTRICT,
		layer      TEXT NOT NULL REFERENCES templates (digest) ON DELETE RESTRICT, -- of its disk
		key        TEXT NOT NULL, -- JSON
		key_hash   TEXT NOT NULL, -- to find it by
		frozen     TEXT NOT NULL, -- JSON: vm.Frozen
		files      TEXT NOT NULL, -- JSON: the files as they were made
		boot_time  INTEGER NOT NULL, -- ns
		agent      TEXT NOT NULL,
		created_at INTEGER NOT NULL,
		used_at    INTEGER NOT NULL
	) STRICT;
	CREATE INDEX units_key ON units (template, key_hash);
	CREATE INDEX units_layer ON units (layer);

	-- What of a machine's folder is its own layer; how often that was frozen.
	ALTER TABLE machines ADD COLUMN disk TEXT NOT NULL DEFAULT 'disk.qcow2';
	ALTER TABLE machines ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE machines ADD COLUMN streaming INTEGER NOT NULL DEFAULT 0; -- QEMU is about to flatten it
	ALTER TABLE machines ADD COLUMN unit TEXT REFERENCES units (id) ON DELETE SET NULL; -- it was made of
	ALTER TABLE machines ADD COLUMN warmth TEXT;   -- JSON
	ALTER TABLE machines ADD COLUMN identity TEXT; -- JSON
	CREATE INDEX machines_unit ON machines (unit);

	-- Machines whose own layer is being frozen, or replaced by another image.
	CREATE TABLE disk_changes (
		machine    TEXT PRIMARY KEY REFERENCES machines (id) ON DELETE RESTRICT,
		layer      TEXT REFERENCES templates (digest) ON DELETE RESTRICT, -- to be; NULL: it is replaced
		state      TEXT NOT NULL CHECK (state IN ('begun', 'done')),
		old_disk   TEXT NOT NULL, -- names in the machine's folder
		new_disk   TEXT NOT NULL,
		generation INTEGER NOT NULL, -- of new_disk
		clones     TEXT NOT NULL -- JSON: ids of machines that are made with it
	) STRICT;
	CREATE INDEX disk_changes_layer ON disk_changes (layer);

	CREATE TABLE fleets (
		name     TEXT PRIMARY KEY,
		document TEXT NOT NULL, -- JSON
		state    TEXT NOT NULL,
		problem  TEXT NOT NULL,
		hash     TEXT NOT NULL, -- of the plan
		at       INTEGER NOT NULL
	) STRICT;
	CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
	-- Files that an export is writing, in other people's folders.
	CREATE TABLE exports (path TEXT PRIMARY KEY) STRICT;

	DROP TRIGGER machine_needs_ready_template;
	DROP TRIGGER template_is_needed;
	-- A clone may be prepared over a layer that is just being frozen.
	CREATE TRIGGER machine_needs_layer BEFORE INSERT ON machines
	WHEN NEW.digest IS NOT NULL AND NOT EXISTS (SELECT 1 FROM templates WHERE digest = NEW.digest
		AND (state = 'ready' OR state = 'creating' AND NEW.state = 'creating'
			AND EXISTS (SELECT 1 FROM disk_changes WHERE layer = NEW.digest)))
	BEGIN SELECT RAISE(ABORT, 'the template is not there, or being removed'); END;
	CREATE TRIGGER machine_stays_on_layer BEFORE UPDATE OF digest, state ON machines
	WHEN NEW.state = 'ready' AND NEW.digest IS NOT NULL
		AND NOT EXISTS (SELECT 1 FROM templates WHERE digest = NEW.digest AND state = 'ready')
	BEGIN SELECT RAISE(ABORT, 'the layer is not there, or being removed'); END;
	CREATE TRIGGER layer_needs_parent BEFORE INSERT ON templates
	WHEN NEW.parent IS NOT NULL AND NOT EXISTS (SELECT 1 FROM templates WHERE digest = NEW.parent AND state = 'ready')
	BEGIN SELECT RAISE(ABORT, 'the layer below is not there, or being removed'); END;
	CREATE TRIGGER unit_needs_template BEFORE INSERT ON units
	WHEN NOT EXISTS (SELECT 1 FROM templates WHERE digest = NEW.template AND state = 'ready')
	BEGIN SELECT RAISE(ABORT, 'the template is not there, or being removed'); END;
	CREATE TRIGGER layer_is_needed BEFORE UPDATE OF state ON templates
	WHEN NEW.state <> 'ready' AND OLD.state <> NEW.state AND (EXISTS (SELECT 1 FROM machines WHERE digest = NEW.digest)
		OR EXISTS (SELECT 1 FROM templates WHERE parent = NEW.digest)
		OR EXISTS (SELECT 1 FROM disk_changes WHERE layer = NEW.digest)
		OR EXISTS (SELECT 1 FROM units WHERE template = NEW.digest OR layer = NEW.digest))
	BEGIN SELECT RAISE(ABORT, 'machines, layers or warm units need the template'); END;`,
}
