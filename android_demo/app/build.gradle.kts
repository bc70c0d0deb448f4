plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "org.gemmaedge.app"
    compileSdk = libs.versions.compileSdk.get().toInt()
    defaultConfig {
        applicationId = "org.gemmaedge.app"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = 1
        versionName = "0.1.0"
    }
    signingConfigs {
        create("release") { // by environment: no key lies in the repository
            System.getenv("GEMMA_EDGE_KEYSTORE")?.let { path ->
                storeFile = file(path)
                storePassword = System.getenv("GEMMA_EDGE_KEYSTORE_PASSWORD")
                keyAlias = System.getenv("GEMMA_EDGE_KEY")
                keyPassword = System.getenv("GEMMA_EDGE_KEY_PASSWORD")
            }
        }
    }
    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = false // texts are looked up by name
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
            signingConfig = signingConfigs.getByName("release").takeIf { it.storeFile != null }
        }
    }
    androidResources {
        generateLocaleConfig = true // a language for this app alone, in Android's settings
    }
    lint {
        abortOnError = true
        checkDependencies = true
    }
    testOptions {
        unitTests.isIncludeAndroidResources = true
    }
    compileOptions {
        sourceCompatibility(libs.versions.jdk.get())
        targetCompatibility(libs.versions.jdk.get())
    }
}

kotlin {
    jvmToolchain(libs.versions.jdk.get().toInt())
}

dependencies {
    implementation(project(":engine"))
    implementation(libs.kotlinx.coroutines.android)
    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
}
