package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// Fleet is a declared fleet as the store keeps it.
type Fleet struct {
	Name     string
	Document api.Fleet // as applied last. Passwords in it are kept: say so to who writes one.
	State    string    // applied, applying, failed
	Problem  string
	Hash     string // of the plan
	At       time.Time
}

const fleetColumns = `name, document, state, problem, hash, at`

func scanFleet(r scanner) (f Fleet, err error) {
	var document []byte
	var at int64
	if err := r.Scan(&f.Name, &document, &f.State, &f.Problem, &f.Hash, &at); err != nil {
		return f, err
	}
	f.At = time.Unix(0, at)
	if err := json.Unmarshal(document, &f.Document); err != nil {
		return f, fmt.Errorf("fleet %s: %w", f.Name, err)
	}
	return f, nil
}

// Fleets lists the fleets by name.
func (s *Store) Fleets(ctx context.Context) ([]Fleet, error) {
	list, err := all(ctx, s.db, scanFleet, `SELECT `+fleetColumns+` FROM fleets ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	return list, nil
}

// Fleet returns the fleet with this name.
func (s *Store) Fleet(ctx context.Context, name string) (Fleet, error) {
	f, err := scanFleet(s.db.QueryRowContext(ctx, `SELECT `+fleetColumns+` FROM fleets WHERE name = ?`, name))
	return f, noRows(err, fmt.Sprintf("fleet %q", name))
}

// SetFleet makes or replaces a fleet's record as one step; it is on stable storage on
// return.
func (s *Store) SetFleet(ctx context.Context, f Fleet) error {
	document, err := json.Marshal(f.Document)
	if err != nil {
		return err
	}
	s.step("fleet recorded")
	_, err = s.db.ExecContext(ctx, `INSERT OR REPLACE INTO fleets (`+fleetColumns+`) VALUES (?,?,?,?,?,?)`,
		f.Name, string(document), f.State, f.Problem, f.Hash, f.At.UnixNano())
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// RemoveFleet forgets a fleet; its machines stay.
func (s *Store) RemoveFleet(ctx context.Context, name string) error {
	if _, err := s.db.ExecContext(ctx, `DELETE FROM fleets WHERE name = ?`, name); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}
