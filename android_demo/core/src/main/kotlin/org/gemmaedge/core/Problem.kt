package org.gemmaedge.core

/** What can go wrong, by what the user can do about it. The app has one string resource for each. */
enum class Problem {
    /** The file is something else, or of a version that this app does not read. */
    NOT_A_BUNDLE,

    /** The file is shorter than it says, or its table cannot be true. */
    DAMAGED,

    /** Size or SHA-256 differ from the converter's report. */
    NOT_AS_REPORTED,

    /** The app trusts a key, and the bundle is not what its owner has signed. */
    NOT_SIGNED,

    /** The text is not the converter's report, or a catalogue of them. */
    NOT_A_REPORT,

    /** The device lacks the space for the file. */
    NO_SPACE,

    /** The connection failed, and so did every retry. */
    NETWORK,

    /** The server answered, with an error. */
    REFUSED_BY_SERVER,

    /** The file or the storage cannot be read or written. */
    STORAGE,

    /** What this app does not expect: a fault of its own, or of another app that provides a document. */
    UNEXPECTED,

    /** The engine could not load the model. */
    LOAD_FAILED,

    /** The engine failed while it was writing an answer. */
    GENERATION_FAILED,
}

/** An error that the user can act on. [message] is one line: what; found against expected; what to do next. */
class DemoException(val problem: Problem, override val message: String, cause: Throwable? = null) :
    Exception(message, cause)
