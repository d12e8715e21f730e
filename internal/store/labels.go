package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/internal/api"
)

// SetLabels gives a machine other labels in the place of all that it has. They are
// on stable storage when it returns.
func (s *Store) SetLabels(ctx context.Context, id string, labels map[string]string) error {
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		var text string
		var config api.MachineConfig
		if err := tx.QueryRowContext(ctx, `SELECT config FROM machines WHERE id = ? AND state = 'ready'`, id).Scan(&text); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &config); err != nil {
			return err
		}
		config.Labels = labels
		b, err := json.Marshal(config)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE machines SET config = ? WHERE id = ?`, string(b), id)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("machine %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}
