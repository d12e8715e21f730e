package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/internal/home"
)

// Secrets returns what NewMachine.Secrets was, nil for none, or when the seed has
// been made.
func (s *Store) Secrets(id string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.Dir(id), home.SecretsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return b, nil
}

// MakeSeed makes the seed image of a machine that was made without, from its
// secrets, which are then forgotten; at once where it is there. Not for one
// machine at the same time.
func (s *Store) MakeSeed(m Machine, build func(secrets []byte) ([]byte, error)) error {
	if err := s.BuildSeed(m, build); err != nil {
		return err
	}
	hidden := filepath.Join(s.Dir(m.ID), home.SecretsFile)
	if err := os.Remove(hidden); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("seed of machine %s: %w", m.Name, err)
	}
	return nil
}

// BuildSeed is MakeSeed that keeps the secrets.
func (s *Store) BuildSeed(m Machine, build func(secrets []byte) ([]byte, error)) error {
	path := filepath.Join(s.Dir(m.ID), home.SeedFile)
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		err = s.makeSeed(m, path, build)
	}
	if err != nil {
		return fmt.Errorf("seed of machine %s: %w", m.Name, err)
	}
	return nil
}

func (s *Store) makeSeed(m Machine, path string, build func([]byte) ([]byte, error)) error {
	secrets, err := s.Secrets(m.ID)
	if err != nil {
		return err
	}
	content, err := build(secrets)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.step("seed written")
	if err := writeSparse(tmp, content); err != nil {
		return err
	}
	if err := syncPath(tmp); err != nil {
		return err
	}
	s.step("seed renamed")
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}
