package seed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Build returns the seed of c: the same bytes for the same Config. Its errors
// name the field and the value that a guest could not use.
func Build(c Config) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return nil, errors.New("seed: not built yet")
}

// Validate says whether a seed can be made of c.
func (c Config) Validate() error {
	if c.InstanceID == "" {
		return errors.New("seed: instance id is empty")
	}
	return nil
}

// writeFile puts b at path by way of a temporary file in the same folder. The
// mode is 0600, as the seed holds a password's hash.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("seed %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("seed %s: %w", path, err)
		}
	}()
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
