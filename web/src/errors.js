/** A problem that the user can fix: one line, shown as it is. */
export class UserError extends Error {}
